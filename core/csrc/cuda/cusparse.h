// Declares what libtorch's headers need of cuSPARSE.

#pragma once

typedef struct cusparseContext* cusparseHandle_t;
typedef int cusparseStatus_t;
