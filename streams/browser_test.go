package streams

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// browser is a Chromium without a window, driven by its DevTools protocol over a pipe: JSON with a zero byte behind it.
type browser struct {
	t       *testing.T
	in      io.Writer
	session string

	mu      sync.Mutex
	last    int
	answers map[int]chan json.RawMessage
	faults  []string // exceptions, errors of its console, requests to others
	pages   string   // address that it may ask
}

// startBrowser starts the browser that EDDYLINE_CHROMIUM names, with an empty page.
func startBrowser(t *testing.T, address string) *browser {
	t.Helper()
	name := os.Getenv("EDDYLINE_CHROMIUM")
	if name == "" {
		t.Skip("EDDYLINE_CHROMIUM is not set: set it to the path of Chromium")
	}
	toBrowser, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, fromBrowser, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(name, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe",
		"--no-first-run", "--disable-background-networking", "--user-data-dir="+t.TempDir(), "about:blank")
	cmd.ExtraFiles = []*os.File{toBrowser, fromBrowser} // its descriptors 3 and 4
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(toBrowser.Close(), fromBrowser.Close()); err != nil {
		t.Fatal(err)
	}
	b := &browser{t: t, in: in, answers: map[int]chan json.RawMessage{}, pages: address}
	read := make(chan struct{})
	go func() {
		defer close(read)
		b.read(out)
	}()
	t.Cleanup(func() {
		b.send("Browser.close", nil)
		cmd.Wait() // however it ends
		<-read
	})
	var target struct{ TargetID string }
	b.call("Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	var attached struct{ SessionID string }
	b.call("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &attached)
	b.session = attached.SessionID
	for _, domain := range []string{"Page", "Runtime", "Log", "Network"} {
		b.call(domain+".enable", nil, nil)
	}
	return b
}

// read takes what the browser says.
func (b *browser) read(out io.Reader) {
	r := bufio.NewReader(out)
	for {
		text, err := r.ReadBytes(0)
		if err != nil {
			return
		}
		var m struct {
			ID     int
			Method string
			Result json.RawMessage
			Error  json.RawMessage
			Params struct {
				Request struct{ URL string }
				Entry   struct{ Level, Text string }
			}
		}
		if json.Unmarshal(text[:len(text)-1], &m) != nil {
			continue
		}
		b.mu.Lock()
		switch {
		case m.ID != 0 && b.answers[m.ID] != nil:
			if m.Error != nil {
				m.Result = append(json.RawMessage("ERROR "), m.Error...)
			}
			b.answers[m.ID] <- m.Result
			delete(b.answers, m.ID)
		case m.Method == "Runtime.exceptionThrown":
			b.faults = append(b.faults, string(text))
		case m.Method == "Log.entryAdded" && m.Params.Entry.Level == "error" && !strings.Contains(m.Params.Entry.Text, "503"):
			b.faults = append(b.faults, m.Params.Entry.Text)
		case m.Method == "Network.requestWillBeSent" && !strings.HasPrefix(m.Params.Request.URL, b.pages):
			b.faults = append(b.faults, "asks "+m.Params.Request.URL)
		}
		b.mu.Unlock()
	}
}

func (b *browser) send(method string, params any) chan json.RawMessage {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last++
	if params == nil {
		params = struct{}{}
	}
	m := map[string]any{"id": b.last, "method": method, "params": params}
	if b.session != "" && !strings.HasPrefix(method, "Browser.") {
		m["sessionId"] = b.session
	}
	text, err := json.Marshal(m)
	if err != nil {
		b.t.Error(err)
	}
	answer := make(chan json.RawMessage, 1)
	b.answers[b.last] = answer
	b.in.Write(append(text, 0)) // a browser that is gone does not answer
	return answer
}

// call calls a method of the protocol.
func (b *browser) call(method string, params, result any) {
	b.t.Helper()
	select {
	case text := <-b.send(method, params):
		if strings.HasPrefix(string(text), "ERROR ") {
			b.t.Fatalf("%s: %s", method, text)
		}
		if result != nil {
			if err := json.Unmarshal(text, result); err != nil {
				b.t.Fatalf("%s: %v", method, err)
			}
		}
	case <-time.After(time.Minute):
		b.t.Fatalf("%s: the browser does not answer", method)
	}
}

// eval returns what an expression of the page is, as text.
func (b *browser) eval(expression string) string {
	b.t.Helper()
	var got struct {
		Result           struct{ Value any }
		ExceptionDetails json.RawMessage
	}
	b.call("Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true}, &got)
	if got.ExceptionDetails != nil {
		b.t.Fatalf("%s: %s", expression, got.ExceptionDetails)
	}
	return fmt.Sprint(got.Result.Value)
}

// shows waits until an expression is true.
func (b *browser) shows(what, expression string) {
	b.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for tick := time.NewTicker(100 * time.Millisecond); b.eval(expression) != "true"; <-tick.C {
		if time.Now().After(deadline) {
			b.picture("failed")
			b.t.Fatalf("the page does not show %s: %s; it shows\n%s", what, expression, b.eval("document.body.innerText"))
		}
	}
}

// click clicks on the middle of an element.
func (b *browser) click(selector string) {
	b.t.Helper()
	var at struct{ X, Y float64 }
	text := b.eval(fmt.Sprintf(`(() => { const e = document.querySelector(%q); if (!e) return '{}'; e.scrollIntoView({block: 'center', inline: 'center'});
		const r = e.getBoundingClientRect(); return JSON.stringify({X: r.x + r.width / 2, Y: r.y + r.height / 2}) })()`, selector))
	if err := json.Unmarshal([]byte(text), &at); err != nil || at.X == 0 {
		b.t.Fatalf("nothing to click on: %s", selector)
	}
	for _, kind := range []string{"mousePressed", "mouseReleased"} {
		b.call("Input.dispatchMouseEvent", map[string]any{"type": kind, "x": at.X, "y": at.Y, "button": "left", "clickCount": 1}, nil)
	}
}

func (b *browser) key(name string) {
	for _, kind := range []string{"keyDown", "keyUp"} {
		b.call("Input.dispatchKeyEvent", map[string]any{"type": kind, "key": name, "code": name}, nil)
	}
}

func (b *browser) size(width, height int) {
	b.call("Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}, nil)
}

// scheme says whether the page is light or dark.
func (b *browser) scheme(name string) {
	b.call("Emulation.setEmulatedMedia", map[string]any{"features": []map[string]string{{"name": "prefers-color-scheme", "value": name}}}, nil)
}

// picture keeps what the page looks like, in the directory that EDDYLINE_TEST_LOGS names.
func (b *browser) picture(name string) {
	dir := os.Getenv("EDDYLINE_TEST_LOGS")
	if dir == "" {
		return
	}
	var got struct{ Data string }
	b.call("Page.captureScreenshot", map[string]any{"format": "png"}, &got)
	png, err := base64.StdEncoding.DecodeString(got.Data)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "console-"+name+".png"), png, 0o600)
	}
	if err != nil {
		b.t.Error(err)
	}
}

// freeAddress returns an address that nobody listens at.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// TestConsoleInBrowser looks at the console of one of three instances under load, some records of which fail, through the
// crash of another one and the restore of its state.
func TestConsoleInBrowser(t *testing.T) {
	b := newTrial(t)
	if os.Getenv("EDDYLINE_CHROMIUM") == "" {
		t.Skip("EDDYLINE_CHROMIUM is not set: set it to the path of Chromium")
	}
	dead := b.app + "-dead"
	if _, err := kadm.NewClient(b.client).CreateTopics(t.Context(), 2, 1, nil, dead); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	start := func(name string) *process {
		c := b.child(filepath.Join(dir, name))
		c.Dead, c.HTTP, c.Standby = dead, freeAddress(t), 1
		p := startProcess(t, name, c)
		p.waitRunning(t)
		return p
	}
	first, second, third := start("a"), start("b"), start("c")
	fed, fail := make(chan struct{}), make(chan struct{})
	go func() { // until the end of the test
		defer close(fed)
		for i := 0; ; i++ {
			r := &kgo.Record{Topic: b.in, Key: fmt.Append(nil, "key-", i%199), Value: fmt.Append(nil, "good ", i)}
			if i%100 == 7 {
				r.Value = fmt.Append(nil, poisons[i/100%len(poisons)].kind, " ", i)
			}
			b.client.Produce(t.Context(), r, nil)
			if i%20 == 0 {
				select {
				case <-fail:
					return
				case <-time.After(20 * time.Millisecond):
				}
			}
		}
	}()
	defer func() { close(fail); <-fed }()

	address := "http://" + first.c.HTTP
	w := startBrowser(t, address)
	w.size(1280, 860)
	w.scheme("light")
	w.call("Page.navigate", map[string]any{"url": address + "/console/"}, nil)
	w.shows("that it runs", `document.querySelector('#state')?.textContent === 'RUNNING'`)
	w.shows("three instances", `/instances\s*3/.test(document.querySelector('#figures').innerText)`)
	w.shows("rates on edges", `[...document.querySelectorAll('.flow')].filter((e) => /[1-9].*\/s/.test(e.textContent)).length >= 3`)
	w.shows("how late records are", `[...document.querySelectorAll('.flow')].some((e) => / old/.test(e.textContent))`)
	w.shows("lag", `[...document.querySelectorAll('.band-name')].every((e) => /lag \d/.test(e.textContent))`)
	w.picture("topology")

	// From a node to its tasks and stores.
	w.click(`[data-node^="KSTREAM-AGGREGATE"]`)
	w.shows("the tasks of the node", `/Tasks of sub-topology 1/.test(document.querySelector('#detail').innerText) &&
		document.querySelectorAll('#detail tbody tr').length >= 16`)
	w.shows("its store", `/counts-changelog/.test(document.querySelector('#detail').innerText)`)
	w.click(`#detail button`)
	w.shows("the look-up", `!document.querySelector('#stores').hidden && document.querySelector('#store').value === 'counts'`)
	w.click(`#lookup button`)
	w.shows("entries of all instances", `document.querySelectorAll('#found tbody tr').length === 50 &&
		new Set([...document.querySelectorAll('#found tbody tr')].map((r) => r.lastChild.textContent)).size === 3`)
	w.eval(`document.querySelector('#key').value = 'key-3'`)
	w.click(`#lookup button`)
	w.shows("the entry of a key", `document.querySelectorAll('#found tbody tr').length === 1 && /good \d+/.test(document.querySelector('#found').innerText)`)
	w.picture("stores")

	// By keyboard to the tasks.
	w.eval(`document.querySelector('#tab-topology').focus()`)
	w.key("ArrowRight")
	w.shows("the tasks", `!document.querySelector('#tasks').hidden && document.activeElement.id === 'tab-tasks'`)
	w.shows("all tasks, and copies", `document.querySelectorAll('.chip.active').length === 16 && document.querySelectorAll('.chip.standby').length === 8`)
	w.picture("tasks")

	// A crash: the others take over, and restore what they do not have.
	third.kill()
	w.shows("two instances", `document.querySelectorAll('#tasks .card').length === 2 && document.querySelectorAll('.chip.active').length === 16`)
	w.picture("crash")
	w.click(`#tab-restores`)
	w.shows("copies that are kept", `document.querySelectorAll('#restores progress').length > 0`)
	w.picture("restores")
	third = startProcess(t, "c", third.c)
	third.waitRunning(t)
	w.click(`#tab-tasks`)
	w.shows("three instances again", `document.querySelectorAll('#tasks .card').length === 3 && document.querySelectorAll('.chip.active').length === 16`)
	w.click(`#tab-events`)
	w.shows("what was left out", `/decode-error/.test(document.querySelector('#events').innerText) && /send-error/.test(document.querySelector('#events').innerText)`)
	w.shows("dead letters", `/Dead letters go to .*-dead: [1-9]/.test(document.querySelector('#events').innerText)`)
	w.shows("warnings", `/a record is left out/.test(document.querySelector('#events').innerText)`)
	w.shows("what happened", `/tasks assigned|is restored|standby/.test(document.querySelector('#events').innerText)`)
	w.picture("events")
	w.click(`#tab-settings`)
	w.shows("settings", `/ApplicationID/.test(document.querySelector('#settings').innerText)`)
	w.picture("settings")

	// In the dark, and on a phone.
	w.scheme("dark")
	w.click(`#tab-topology`)
	w.picture("dark")
	w.size(390, 844)
	for _, view := range []string{"topology", "tasks", "restores", "stores", "events", "settings"} {
		w.click("#tab-" + view)
		w.shows("a page as wide as the phone", `document.documentElement.scrollWidth <= innerWidth`)
		w.picture("phone-" + view)
	}
	for _, p := range []*process{second, third, first} {
		if err := p.stop(); err != nil {
			t.Errorf("%s: %v\n%s", p.name, err, p.log())
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.faults {
		if !strings.Contains(f, "snapshot") && !strings.Contains(f, "ERR_CONNECTION_REFUSED") { // the instance was stopped
			t.Errorf("the page: %s", f)
		}
	}
}
