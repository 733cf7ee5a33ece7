"""Fault campaigns: what is tried against ranklet, each in three sizes.

``make faults`` runs the long size of all, tests/test_faults.py the others.
"""
