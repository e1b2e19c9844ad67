"""A static model of the kernels' speed, from their machine code and launch shapes: predictions, never measurements.

It says where the first hour on a GPU should go. `machine.py` states what is assumed, and from where.
"""
