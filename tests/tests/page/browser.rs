//! A browser, Chromium without a screen, by its DevTools protocol: messages of JSON through two pipes,
//! each ended by a zero byte.

use std::cell::RefCell;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};

use sandbox::{Running, Sandbox};
use serde_json::{Value, json};

pub struct Browser {
    requests: File,
    answers: RefCell<BufReader<File>>,
    /// The page's session.
    session: String,
    next: RefCell<u64>,
    _process: Running,
}

impl Browser {
    /// On the node of the sandbox.
    pub fn start(sandbox: &Sandbox) -> Self {
        let dir = sandbox.dir().join("browser");
        let path = dir.display().to_string();
        sandbox
            .host()
            .sh(&format!("mkdir {path}; mkfifo {path}/in {path}/out"));
        // Root's browser has no sandbox of its own; there is no /dev/shm of its size.
        let script = format!(
            "cd {path}; HOME={path} exec chromium-headless-shell --no-sandbox --disable-gpu --disable-dev-shm-usage \
             --hide-scrollbars --remote-debugging-pipe --user-data-dir={path}/profile about:blank 3<in 4>out"
        );
        let process = sandbox.host().start(&["sh", "-c", &script]);
        let open = |name: &str, write: bool| {
            let file = File::options()
                .write(write)
                .read(!write)
                .open(dir.join(name));
            file.unwrap_or_else(|error| panic!("{name}: {error}"))
        };
        let (requests, answers) = (open("in", true), open("out", false));
        let mut browser = Self {
            requests,
            answers: RefCell::new(BufReader::new(answers)),
            session: String::new(),
            next: RefCell::new(0),
            _process: process,
        };
        let targets = browser.call("Target.getTargets", json!({}));
        let id = &targets["targetInfos"][0]["targetId"];
        let attached = browser.call(
            "Target.attachToTarget",
            json!({"targetId": id, "flatten": true}),
        );
        browser.session = attached["sessionId"]
            .as_str()
            .expect("a session")
            .to_owned();
        browser
    }

    /// Calls a method, and waits for its result.
    #[track_caller]
    pub fn call(&self, method: &str, params: Value) -> Value {
        let id = self.next.replace_with(|it| *it + 1);
        let mut message = json!({"id": id, "method": method, "params": params});
        if !self.session.is_empty() {
            message["sessionId"] = json!(self.session);
        }
        let mut text = message.to_string();
        text.push('\0');
        let mut requests = &self.requests;
        requests
            .write_all(text.as_bytes())
            .expect("the browser runs");
        loop {
            let mut answer = Vec::new();
            let read = self.answers.borrow_mut().read_until(0, &mut answer);
            assert!(
                read.is_ok_and(|it| it > 0),
                "{method}: the browser has ended"
            );
            answer.pop();
            let answer: Value = serde_json::from_slice(&answer).expect("JSON");
            // Others are events.
            if answer["id"] == id {
                assert!(answer["error"].is_null(), "{method}: {answer}");
                return answer["result"].clone();
            }
        }
    }

    /// The value of a script's last expression; of a promise, what it leads to.
    #[track_caller]
    pub fn run(&self, script: &str) -> Value {
        let params = json!({"expression": script, "returnByValue": true, "awaitPromise": true});
        let done = self.call("Runtime.evaluate", params);
        assert!(done["exceptionDetails"].is_null(), "{script}: {done}");
        done["result"]["value"].clone()
    }

    /// Waits until a condition of the page holds.
    #[track_caller]
    pub fn wait_until(&self, condition: &str) {
        let script = format!(
            "new Promise((done) => {{ const look = () => {{
               let holds = false; try {{ holds = {condition}; }} catch {{}}
               if (holds) done(true); else setTimeout(look, 20); }}; look();
               setTimeout(() => done(false), 30000); }})"
        );
        let holds = self.run(&script);
        assert_eq!(
            holds,
            true,
            "{condition}: {}",
            self.run("document.body.innerText")
        );
    }

    pub fn open(&self, url: &str) {
        self.call("Page.navigate", json!({"url": url}));
        self.wait_until(&format!(
            "location.href === {} && document.readyState === \"complete\"",
            json!(url)
        ));
    }

    /// The size of the window, and the colours that its user prefers.
    pub fn look(&self, [width, height]: [u32; 2], scheme: &str) {
        let size =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.call("Emulation.setDeviceMetricsOverride", size);
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.call("Emulation.setEmulatedMedia", json!({"features": features}));
    }
}
