// Declares what libtorch's headers need of cuSOLVER.

#pragma once

typedef struct cusolverDnContext* cusolverDnHandle_t;
