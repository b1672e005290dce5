"""Simulated models: every dialect Tollgate speaks, answered as the real APIs answer, with a journal of what was served.

Rules
1. The journal is the ground truth of every metering test: it is written the moment bytes are handed to the transport.
2. Text and usage are a function of the request and its steering, so that a test can say what it expects.

Not here: prices and quota. Nothing in the data plane imports this package.
"""
