//! What there is of the internet for these tests: one host's program that answers for the names that the server is told.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

/// What every page says.
const PAGE: &str = "a page of the internet";

/// Hosts by these names, and what they were asked.
pub struct Internet {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Internet {
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&asked);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let seen = Arc::clone(&seen);
                thread::spawn(move || answer(stream, &seen));
            }
        });
        Self { port, asked }
    }

    /// Where the server finds each host, as its setting for tests has it.
    pub fn hosts(&self) -> String {
        let hosts = ["allowed.test", "other.test", "sub.allowed.test", "allowed.test.other.test", "203.0.113.77"];
        hosts.map(|host| format!("{host}=127.0.0.1:{}", self.port)).join(",")
    }

    /// The heads of all requests since the attack began.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    /// Begins anew, for the next attack.
    pub fn forget(&self) {
        self.asked.lock().unwrap().clear();
    }
}

/// Answers requests one after the other. `/redirect` leads to a metadata service.
fn answer(mut stream: TcpStream, seen: &Mutex<Vec<String>>) {
    let _ = stream.set_read_timeout(Some(Duration::from_secs(60)));
    let mut head = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte).is_ok_and(|read| read == 1) {
        head.push(byte[0]);
        if head.ends_with(b"\r\n\r\n") {
            let text = String::from_utf8_lossy(&head).into_owned();
            let redirect = text.starts_with("GET /redirect");
            seen.lock().unwrap().push(text);
            head.clear();
            let (status, location) =
                if redirect { ("302 Found", "location: http://169.254.169.254/latest/\r\n") } else { ("200 OK", "") };
            let answer = format!("HTTP/1.1 {status}\r\n{location}content-length: {}\r\n\r\n{PAGE}", PAGE.len());
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    }
}
