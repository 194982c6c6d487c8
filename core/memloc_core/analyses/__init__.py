"""One file per analysis, each a generator: `run(lm, request)` yields Progress between steps and returns a Result.

Closing the generator cancels it. Between two steps the engine may serve another request.
"""
