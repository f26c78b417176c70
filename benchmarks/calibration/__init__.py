"""Is the interpreter a GPU? Single instructions and attention kernels, run on a card and in the interpreter."""
