// In place of a file that compile_few.py leaves out.
