"""`python -m service`, the same as `reelsrs`."""


def main() -> None:
    """Run the command line; the import waits so that child processes that import this file stay light."""
    from service.cli import run

    run()


if __name__ == "__main__":
    main()
