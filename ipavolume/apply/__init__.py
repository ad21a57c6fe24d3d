"""Carrying out a plan: stage, mark, swap, tasks, commit; and going on with one."""
