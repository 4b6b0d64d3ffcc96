"""Workers of a local Ray that begin with what they compute with: forked from a process that has imported it once.

A rollout actor, a learner rank and a reward's replica import torch, diffusers, DeepSpeed or open_clip for ten seconds
each before they do anything, and again whenever one of them is started anew. A local Ray of ours has a fork server
beside it (`server.py`), which imports all that once, while Ray starts; a worker is then a copy of that process, which
takes a tenth of a second. Ray is told to start `client.py` in Python's place (`py_executable` of a runtime
environment), which asks the server for the worker and, where it gets none, starts Python as Ray would have.

Where it is not used: on a cluster that others started, whose machines are not ours; on a machine with GPUs, for CUDA
does not survive a fork once anything has looked for a device; and where fork is not safe, outside Linux.
"""
