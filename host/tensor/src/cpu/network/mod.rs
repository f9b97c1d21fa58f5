//! Forward kernels of language models.
