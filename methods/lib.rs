//! The built-in methods, one place each: configuration, maths, registration and test side by side.
