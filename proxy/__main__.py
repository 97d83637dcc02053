"""`python -m proxy` is `nomba-proxy`."""

from proxy.cli import main

if __name__ == "__main__":
    main()
