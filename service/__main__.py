"""Entry point of `python -m service`, the same as `reelsrs`."""


def main() -> None:
    """Run the command line.

    The import is inside the function, so that child processes that import this module stay light.
    """
    from service.cli import run

    run()


if __name__ == "__main__":
    main()
