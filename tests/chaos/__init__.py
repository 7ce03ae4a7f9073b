"""Breaks a running service in every way that an operator meets, and checks that it keeps what it has promised.

`python -m tests.chaos` starts a store, a service, a worker and a proxy between them and the store. Clients change
categories all the time and keep a journal; meanwhile processes are killed and stopped, connections cut and slowed, and
the store takes no writes. `invariants.py` says what must hold.
"""
