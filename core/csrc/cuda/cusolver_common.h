// Declares what libtorch's headers need of cuSOLVER.

#pragma once

typedef int cusolverStatus_t;
