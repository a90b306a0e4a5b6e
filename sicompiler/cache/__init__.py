"""What is known from earlier processes: captured programs, plans and rewritten programs, in a folder on disk.

| module | what |
|---|---|
| `store` | the folder: entries of bytes, written at once, bounded in size, never a reason to fail |
| `graphs`, `results`, `programs` | a program as bytes, and back |
| `keys`, `versions` | what a program, and what a plan depends on, as a digest; what is installed |
| `known` | what is asked of the folder: the program of a call, the plan for a budget |

A file of the cache is data: JSON and tensors. Nothing in it is executed, imported or unpickled; operators are named,
and looked up among those that graphs of this process may have.
"""
