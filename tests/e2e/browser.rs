//! A browser without a window, driven over its DevTools pipe: what a page logs, asks for, shows, and does with the keyboard.
//!
//! The protocol is JSON with a zero byte behind each message, on file descriptors 3 and 4; a shell puts them where standard
//! input and output are, so that nothing but the standard library is needed.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);

/// The browser to use: the one that PACKHOST_BROWSER names, else one on the search path. Without any the test shows nothing,
/// and says so; PACKHOST_BROWSER=require makes that a failure.
pub fn program() -> Option<PathBuf> {
    let named = std::env::var_os("PACKHOST_BROWSER").filter(|name| !name.is_empty());
    let required = named.as_deref().is_some_and(|name| name == "require");
    if let Some(name) = named.filter(|_| !required) {
        return Some(name.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let found = std::env::split_paths(&path)
        .flat_map(|folder| names.map(|name| folder.join(name)))
        .find(|program| program.is_file());
    if found.is_none() {
        let sentence = "no browser on the search path (chromium, chromium-browser, google-chrome; or name one with PACKHOST_BROWSER): report.html is not looked at";
        assert!(!required, "{sentence}");
        eprintln!("SKIPPED: {sentence}");
    }
    found
}

/// A page in a browser of its own.
pub struct Browser {
    child: Child,
    to: ChildStdin,
    from: Receiver<Value>,
    session: Value,
    last: u64,
    events: Vec<Value>,
    url: String,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Opens a file and waits until it is loaded.
    pub fn open(program: &Path, file: &Path) -> Self {
        let profile = tempfile::tempdir().unwrap();
        let mut child = Command::new("sh")
            .args(["-c", r#"exec "$0" "$@" 3<&0 4>&1 </dev/null >/dev/null"#])
            .arg(program)
            // Without a sandbox of its own: in containers tests run as root, and the page is ours.
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
            ])
            .args(["--disable-extensions", "--disable-background-networking"])
            .arg("--host-resolver-rules=MAP * ~NOTFOUND")
            .arg("--remote-debugging-pipe")
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let to = child.stdin.take().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let (sender, from) = channel();
        std::thread::spawn(move || {
            let mut message = Vec::new();
            while output
                .read_until(0, &mut message)
                .is_ok_and(|read| read > 0)
            {
                message.pop();
                let Ok(value) = serde_json::from_slice(&message) else {
                    break;
                };
                if sender.send(value).is_err() {
                    break;
                }
                message.clear();
            }
        });
        let mut browser = Self {
            child,
            to,
            from,
            session: Value::Null,
            last: 0,
            events: Vec::new(),
            url: format!("file://{}", file.display()),
            _profile: profile,
        };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"}));
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        browser.session = browser.call("Target.attachToTarget", attach)["sessionId"].clone();
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser.call("Page.navigate", json!({"url": browser.url}));
        browser.wait("Page.loadEventFired");
        browser
    }

    /// Calls a method of the protocol and answers its result.
    pub fn call(&mut self, method: &str, params: Value) -> Value {
        self.last += 1;
        let mut message = json!({"id": self.last, "method": method, "params": params});
        if self.session.is_string() {
            message["sessionId"] = self.session.clone();
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.to.write_all(&bytes).unwrap();
        loop {
            let mut answer = self.receive(method);
            if answer["id"] == self.last {
                assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
                return answer["result"].take();
            }
            self.events.push(answer);
        }
    }

    fn receive(&mut self, what: &str) -> Value {
        let received = self.from.recv_timeout(PATIENCE);
        received.unwrap_or_else(|error| panic!("{what}: {error}; so far: {:#?}", self.events))
    }

    fn wait(&mut self, event: &str) {
        let end = Instant::now() + PATIENCE;
        while !self.events.iter().any(|one| one["method"] == event) {
            assert!(Instant::now() < end, "no {event}");
            let received = self.receive(event);
            self.events.push(received);
        }
    }

    /// The value of an expression in the page.
    pub fn eval(&mut self, expression: &str) -> Value {
        let params = json!({"expression": expression, "returnByValue": true});
        let mut answer = self.call("Runtime.evaluate", params);
        assert!(answer["exceptionDetails"].is_null(), "{answer:#}");
        answer["result"]["value"].take()
    }

    /// Everything that a quiet page does not do: log, throw, open a dialog, ask for anything but itself.
    pub fn faults(&mut self) -> Vec<String> {
        // What was sent before is here when this is answered.
        self.eval("new Promise(done => setTimeout(done, 50)) && 0");
        let url = &self.url;
        let fault = |event: &Value| {
            let params = &event["params"];
            match event["method"].as_str().unwrap_or_default() {
                "Runtime.consoleAPICalled" => Some(format!("console: {}", params["args"])),
                "Runtime.exceptionThrown" => {
                    Some(format!("exception: {}", params["exceptionDetails"]))
                }
                "Log.entryAdded" => Some(format!("log: {}", params["entry"]["text"])),
                "Page.javascriptDialogOpening" => Some(format!("dialog: {}", params["message"])),
                "Network.requestWillBeSent" => {
                    let asked = params["request"]["url"].as_str().unwrap_or_default();
                    (asked != url).then(|| format!("request: {asked}"))
                }
                _ => None,
            }
        };
        self.events.iter().filter_map(fault).collect()
    }

    /// Presses a key and lets it go.
    pub fn press(&mut self, key: &str, code: u32, text: &str) {
        let key = json!({"key": key, "code": key, "windowsVirtualKeyCode": code});
        for (kind, text) in [("keyDown", text), ("keyUp", "")] {
            let mut event = key.clone();
            event["type"] = json!(if kind == "keyDown" && text.is_empty() {
                "rawKeyDown"
            } else {
                kind
            });
            if !text.is_empty() {
                event["text"] = json!(text);
            }
            self.call("Input.dispatchKeyEvent", event);
        }
    }

    /// The theme that the reader prefers, and the medium (`screen` or `print`).
    pub fn media(&mut self, theme: &str, medium: &str) {
        let features = json!([{"name": "prefers-color-scheme", "value": theme}]);
        self.call(
            "Emulation.setEmulatedMedia",
            json!({"media": medium, "features": features}),
        );
    }

    /// The size of the window, in CSS pixels.
    pub fn size(&mut self, width: u32, height: u32) {
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.call("Emulation.setDeviceMetricsOverride", metrics);
    }

    /// The page as paper, in bytes of PDF.
    pub fn printed(&mut self) -> Vec<u8> {
        let answer = self.call("Page.printToPDF", json!({"printBackground": true}));
        decoded(&answer["data"])
    }

    /// A picture of the whole page, kept in the folder that PACKHOST_SCREENSHOTS names; it is for people to look at.
    pub fn picture(&mut self, name: &str) {
        let params = json!({"captureBeyondViewport": true, "format": "png"});
        let picture = decoded(&self.call("Page.captureScreenshot", params)["data"]);
        assert!(picture.starts_with(b"\x89PNG"));
        if let Some(folder) = std::env::var_os("PACKHOST_SCREENSHOTS") {
            fs::write(Path::new(&folder).join(format!("{name}.png")), picture).unwrap();
        }
    }
}

fn decoded(text: &Value) -> Vec<u8> {
    let base64 = base64::engine::general_purpose::STANDARD;
    base64.decode(text.as_str().unwrap()).unwrap()
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The browser's own processes end with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
