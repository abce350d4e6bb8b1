"""Words, files and tables of the commands that read and write resources."""
