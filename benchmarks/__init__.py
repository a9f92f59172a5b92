"""The engine against llama.cpp's own programs, and against peers where they are installed: ``python -m benchmarks``."""
