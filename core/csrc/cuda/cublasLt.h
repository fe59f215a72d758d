// Declares what libtorch's headers need of cuBLASLt.

#pragma once

typedef struct cublasLtContext* cublasLtHandle_t;
