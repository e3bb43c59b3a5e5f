"""The machine that this runs on: files, processes, processor, GPU driver, packages."""
