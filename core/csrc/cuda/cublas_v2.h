// Declares what libtorch's headers need of cuBLAS. They only pass the types on.

#pragma once

typedef struct cublasContext* cublasHandle_t;
typedef int cublasStatus_t;
