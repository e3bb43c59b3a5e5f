"""Launcher for a checkout: ``python cli.py onnx ckpt.pt`` is ``simmim-export onnx ckpt.pt``."""

from simmim_export.cli import main

if __name__ == "__main__":
    main()
