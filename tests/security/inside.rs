//! What the attacks say inside, in Python, and how they are heard.

use std::fmt::Write as _;

use syscalls::Sysno;

/// How the complaint about an attack that got through begins.
pub const GOT_THROUGH: &str = "got through";

/// What each attack has at hand. A try prints what was tried and the error that it ended with.
const PRELUDE: &str = r#"
import ctypes, errno, os, socket, stat, sys
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

def _word(value):
    return ctypes.c_long(value) if isinstance(value, int) else value

def failed(number, what):
    raise OSError(number, what)

def call(name, *arguments):
    """A system call by name; one that this machine does not have is refused by that."""
    if name not in NUMBERS:
        failed(errno.ENOSYS, name)
    ctypes.set_errno(0)
    got = _libc.syscall(ctypes.c_long(NUMBERS[name]), *map(_word, arguments))
    if got == -1:
        failed(ctypes.get_errno(), name)
    return got

def attempt(what, function, *arguments):
    try:
        got = function(*arguments)
    except OSError as error:
        outcome = errno.errorcode.get(error.errno) or type(error).__name__
    except (ValueError, MemoryError) as error:
        outcome = type(error).__name__
    else:
        outcome = f'THROUGH {got!r:.200}'
    print(f'{what} => {outcome}', flush=True)

def read(path):
    """What can be read of a file; nothing is an error."""
    with open(path, 'rb') as file:
        return file.read(65536) or failed(errno.ENODATA, path)

def look(path):
    """The same for what may be readable as long as there is no secret in it."""
    try:
        print(read(path), flush=True)
    except OSError:
        pass

def opened(path, flags=os.O_WRONLY):
    os.close(os.open(path, flags))
    return 'opened'

def processes():
    return [name for name in os.listdir('/proc') if name.isdigit() and int(name) != os.getpid()]

def in_child(function):
    """Runs a function in a process of its own and fails as it does."""
    child = os.fork()
    if child == 0:
        try:
            function()
        except OSError as error:
            os._exit(error.errno or 255)
        except BaseException:
            os._exit(errno.EPERM)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status != 0:
        failed(status if status > 0 else errno.EINTR, 'in a child')
    return 'done'
"#;

const END: &str = "the end of the attack";

/// The whole program of an attack.
pub fn program(attack: &str) -> String {
    let mut numbers = String::from("NUMBERS = {");
    for call in Sysno::iter() {
        let _ = write!(numbers, "'{}': {}, ", call.name(), call.id());
    }
    format!("{numbers}}}\n{PRELUDE}\n{attack}\nprint({END:?})\n")
}

/// What became of an attack's tries.
pub struct Tries {
    printed: String,
    outcomes: Vec<(String, String)>,
}

impl Tries {
    /// Reads what an attack has printed. One that did not come to its end proves nothing.
    pub fn of(printed: String) -> Self {
        assert!(printed.contains(END), "the attack broke off:\n{printed}");
        let outcomes = printed.lines().filter_map(|line| line.split_once(" => "));
        let outcomes = outcomes.map(|(what, outcome)| (what.to_owned(), outcome.to_owned())).collect();
        Self { printed, outcomes }
    }

    /// What was printed.
    pub fn printed(&self) -> &str {
        &self.printed
    }

    /// Fails unless something was tried and all of it ended in an error.
    pub fn all_refused(&self) {
        assert!(!self.outcomes.is_empty(), "nothing was tried:\n{}", self.printed);
        let through: Vec<_> = self.outcomes.iter().filter(|(_, outcome)| outcome.starts_with("THROUGH")).collect();
        assert!(through.is_empty(), "{GOT_THROUGH}: {through:?}\n{}", self.printed);
    }

    /// Fails unless all of it ended in one of these errors: others would say that the wall was not met.
    pub fn all_refused_with(&self, errors: &[&str]) {
        self.all_refused();
        let others: Vec<_> = self.outcomes.iter().filter(|(_, outcome)| !errors.contains(&outcome.as_str())).collect();
        assert!(others.is_empty(), "refused for other reasons than {errors:?}: {others:?}\n{}", self.printed);
    }
}
