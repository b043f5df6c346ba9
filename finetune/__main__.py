"""`python -m finetune --help`: what can be asked about runs that are done."""

from finetune.cli.commands import run_command

if __name__ == "__main__":
    run_command()
