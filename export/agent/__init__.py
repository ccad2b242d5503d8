"""The program that runs on the device: it loads exported files, times them and prints one JSON object per line.

    python agent request.json

It needs Python 3.8, numpy and the runtime of the files, and nothing of mcompress: `mcompress profile` copies this one folder to the device, whose
Python runs it as a program. The same files are `mcompress.export.agent` here, so they import each other relatively, and nothing else of mcompress.

Each job runs in a process of its own. What is said: `{"event": "alive"}` every few seconds, `{"event": "result" | "failed", "job": 0, ...}` for each
job.

What is timed is the runtime's execution alone (`Invoke`, `run_with_iobinding`, `Method`), as `benchmark_model` and `executor_runner` time it on
phones: inputs are set before, outputs stay where they are.
"""
