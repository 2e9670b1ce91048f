"""Runs inside the sandbox of `rewards.code`, never in the trainer: a program and its tests.

It gets a job as JSON on standard input, and answers on standard output: `started`, and the job's token after all tests
have passed. What the program prints goes nowhere.
"""

import json
import os
import resource
import sys


def main() -> None:
    job = json.load(sys.stdin)
    answers, nothing = os.dup(1), os.open("/dev/null", os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    if os.getuid() == 0:  # a limit of processes does not hold for root
        os.setgroups([])
        os.setgid(job["uid"])
        os.setuid(job["uid"])
    for name, value in job["limits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))
    os.write(answers, b"started\n")
    names = {"__name__": "program"}
    for part in job["parts"]:
        exec(compile(part, "<program>", "exec"), names)
    os.write(answers, job["token"].encode())


if __name__ == "__main__":
    main()
