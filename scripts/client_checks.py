"""What the scripts share that check a running server with a client: each check is a function, run at once,
and one line of output."""

FAILED = []


def check(name):
    """Runs a function as a check at once and prints its line."""

    def run(function):
        try:
            note = function()
            print(f"PASS {name}" + (f": {note}" if note else ""))
        except Exception as error:  # whatever it is, it is the result of the check
            FAILED.append(name)
            print(f"FAIL {name}: {type(error).__name__}: {error}")
        return function

    return run


def expect(condition, what):
    if not condition:
        raise AssertionError(what)
