"""The machine that we run on: files, caches, processes, signals, the processor, the GPU driver, installed packages."""
