"""Says of one reading of one file whether all is well: it runs in a process of its own.

What it watches: which error is raised, warnings, code that is run and files that are written (an
audit hook), memory (what Python allocates, and the address space), and time.
"""

import os
import resource
import signal
import sys
import time
import tracemalloc
import warnings

LONGEST_MESSAGE = 500
SECONDS = 2.0  # of the processor, for one file
SPARE = 2 << 20  # bytes beside twice the file's size: Python's own objects
HEADROOM = 64 << 20  # of the address space, for whatever is not Python's

# What no reader needs, by the beginnings of audit events' names.
FORBIDDEN = (
    *("exec", "compile", "import", "code.", "function.", "marshal.", "pickle.", "ctypes."),
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.kill", "os.putenv"),
    *(
        "subprocess.",
        "pty.",
        "socket.",
        "urllib.",
        "ftplib.",
        "smtplib.",
        "http.",
        "builtins.input",
    ),
    *("shutil.", "os.link", "os.symlink", "os.chmod", "os.chown", "cpython.", "gc.", "signal."),
    *("setopencodehook", "sys.set", "sys.unraisable", "glob.", "webbrowser.", "syslog."),
)
# What changes files: allowed in the readers' own scratch folder.
CHANGES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "tempfile.")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class TooSlow(BaseException):
    """Raised by the timer."""


class Harness:
    """Judges readings.

    Args:
        scratch: The only folder that readers may write to.
    """

    def __init__(self, scratch):
        self.scratch = os.path.realpath(scratch)
        self.watching = False
        self.events = []
        self.slowest = 0.0
        sys.addaudithook(self._audit)
        signal.signal(signal.SIGPROF, self._stop)

    def limit_address_space(self):
        """Have what takes much more memory than now raise MemoryError.

        To be repeated: what is mapped and never touched grows, by kilobytes in a thousand files.
        """
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + HEADROOM, resource.RLIM_INFINITY))

    def _audit(self, event, arguments):
        if not self.watching:
            return
        if event == "open":
            path, _, flags = arguments
            if (flags or 0) & _WRITING and not self._is_own(path):
                self.events.append(f"open {path!r:.100} to write")
        elif event.startswith(CHANGES):
            if not self._is_own(arguments[0]):
                self.events.append(f"{event} {arguments!r:.100}")
        elif event.startswith(FORBIDDEN):
            self.events.append(f"{event} {arguments!r:.100}")

    def _is_own(self, path):
        return isinstance(path, str | os.PathLike) and os.path.abspath(path).startswith(
            f"{self.scratch}{os.sep}"
        )

    def _stop(self, *_):
        raise TooSlow

    def judge(self, read, size, traced=False):
        """Call a reader.

        Args:
            read: Takes nothing.
            size: The file's.
            traced: Whether to measure memory too, which takes time.

        Returns:
            "read" or "refused", and a list of what was wrong.
        """
        wrong, outcome = [], "refused"
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            if traced:
                tracemalloc.start()
            self.events.clear()
            start = time.process_time()
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            self.watching = True
            try:
                read()
                outcome = "read"
            except ValueError as error:
                wrong += _wrong_error(error)
            except TooSlow:
                wrong.append(f"takes more than {SECONDS} s")
            except BaseException as error:
                wrong.append(f"raises {type(error).__name__}: {error!r:.200} {_place(error)}")
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
                self.watching = False
            self.slowest = max(self.slowest, time.process_time() - start)
            if traced:
                _, peak = tracemalloc.get_traced_memory()
                tracemalloc.stop()
                if peak > 2 * size + SPARE:
                    wrong.append(f"takes {peak} bytes for a file of {size}")
        wrong += [f"warns: {one.message!s:.200}" for one in warned]
        wrong += self.events
        return outcome, wrong


def _wrong_error(error):
    message = str(error)
    if type(error) is not ValueError:
        yield f"raises {type(error).__name__}: {message:.200} {_place(error)}"
    if "\n" in message or "\r" in message:
        yield f"raises an error of several lines: {message!r:.200} {_place(error)}"
    if len(message) > LONGEST_MESSAGE:
        yield f"raises an error of {len(message)} characters: {message:.200} {_place(error)}"
    if not message.strip():
        yield f"raises an error without a message {_place(error)}"


def _place(error):
    """Where an error came from."""
    while error.__cause__ is not None and type(error) is ValueError:
        error = error.__cause__
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return ""
    code = trace.tb_frame.f_code
    return f"({os.path.basename(code.co_filename)}:{trace.tb_lineno} {code.co_name})"
