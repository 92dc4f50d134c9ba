"""What a model takes, by parts, computed before anything is loaded. No tensor library: file headers, config.json, arithmetic.

The formulas are checked against real loads and against a trace of every tensor of real calls (tests/runtime/test_sizes.py).
"""
