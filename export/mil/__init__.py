"""Core ML programs without Core ML: a saved `.mlpackage` is read from its files alone, and computed with numpy.

`program.read_program` gives the program as the files state it; `runner.MilRunner` executes it. Neither imports torch, coremltools' converters, or
anything that only macOS has.
"""

EVALUATOR = "mcompress evaluator of Core ML programs"
"""How results say that they are the evaluator's and not Core ML's."""
