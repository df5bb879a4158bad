package streams

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/streams/task"
	"github.com/eddyline/eddyline/topology"
)

const stateArgs = "list | dump STORE | export FILE | import FILE"

var stateCommand = &command{
	name: "state", args: stateArgs, least: 1, most: 2, run: (*program).state,
	short: "look into the state directory of a stopped instance, or move its state",
	long: "list           prints the stores of each task: kind, entries, bytes, and up to which offset of its changelog each is\n" +
		"dump STORE     prints the entries of a store as lines of JSON, as they lie on disk: windows that are over and not yet\n" +
		"               dropped too; what cannot be decoded as bytes, in base64, with the reason\n" +
		"export FILE    writes the stores with their offsets to a file, for another machine or for replay\n" +
		"import FILE    puts them into a state directory; the application goes on reading their changelogs from these offsets,\n" +
		"               and reads them from the beginning where they do not fit any more\n\n" +
		"list, dump and export change nothing. Stores in memory are on no disk. Stores without a changelog are exported, and not\n" +
		"imported: nothing would bring them up to the input that the application goes on from.",
	flags: func(p *program, f *flag.FlagSet) {
		x := &p.command.state
		f.BoolVar(&p.command.json, "json", false, "list: print JSON")
		f.StringVar(&x.task, "task", "", "dump: only of this `task`, such as 0_3")
		f.StringVar(&x.from, "from", "", "dump: begin with this `key`, in the order of the keys' bytes")
		f.StringVar(&x.to, "to", "", "dump: end with this `key`")
		f.IntVar(&x.limit, "limit", 0, "dump: at most so many `entries` (default: all)")
		f.BoolVar(&x.replace, "replace", false, "import: over stores that are there")
	},
}

// stateFlags are the flags of the command state.
type stateFlags struct {
	task, from, to string
	limit          int
	replace        bool
}

func (p *program) state(args []string) error {
	what, name := args[0], ""
	if len(args) == 2 {
		name = args[1]
	}
	c := p.config
	if c.Logger == nil {
		c.Logger = slog.New(slog.NewTextHandler(p.err, &slog.HandlerOptions{Level: max(p.logLevel, slog.LevelWarn)}))
	}
	c = c.withDefaults()
	switch {
	case what == "list" && name == "":
		return p.readState(c, p.listState)
	case what == "dump" && name != "":
		return p.readState(c, func(s *storedState) error { return p.dumpState(s, name) })
	case what == "export" && name != "":
		return p.readState(c, func(s *storedState) error { return p.exportState(s, c.ApplicationID, name) })
	case what == "import" && name != "":
		return p.importState(c, name)
	}
	return fmt.Errorf("state %s: want state %s; see %s help state", strings.Join(args, " "), stateArgs, p.name)
}

// storedState is what lies in the state directory of a stopped instance. Nothing changes it.
type storedState struct {
	dir    *state.Dir
	spaces *state.Spaces
	kept   keptTopology // that wrote it; no Topology: it is not known
}

// readState calls f with what lies in the state directory.
func (p *program) readState(c Config, f func(*storedState) error) (err error) {
	path, err := oneStateDir(c)
	if err != nil {
		return err
	}
	s := &storedState{}
	if s.dir, err = state.OpenDir(path, state.DirOptions{FS: c.Host.FS, HostName: c.Host.Name, Logger: c.Logger, ReadOnly: true}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.dir.Close()) }()
	var engine state.Engine = state.NewMemory()
	if c.Engine != nil || s.dir.HasDatabase() {
		st := &storage{dir: s.dir, log: c.Logger}
		if err := st.open(c, func(*state.CorruptError) {}); err != nil {
			return err
		}
		engine = st.engine
	}
	defer func() { err = errors.Join(err, engine.Close()) }()
	if s.spaces, err = state.ReadSpaces(engine); err != nil {
		return err
	}
	if s.kept, err = keptIn(s.dir); err != nil {
		return err
	}
	return f(s)
}

// keptIn returns which topology wrote the state of a directory, without a Topology if that is not known.
func keptIn(dir *state.Dir) (kept keptTopology, err error) {
	b, err := dir.Topology()
	if err == nil && b != nil {
		err = json.Unmarshal(b, &kept)
	}
	if err != nil {
		return kept, fmt.Errorf("read which topology wrote the state in %s: %w", dir.Path(), err)
	}
	return kept, nil
}

// oneStateDir returns the state directory of the command line, or else the only one of the application on this machine.
func oneStateDir(c Config) (string, error) {
	if c.StateDir != "" {
		return c.StateDir, nil
	}
	switch dirs := existingDirs(c); len(dirs) {
	case 0:
		return "", fmt.Errorf("%w of application %q in the default place, %s: name it with --state-dir", state.ErrNoState, c.ApplicationID, c.stateDirs()[0])
	case 1:
		return dirs[0], nil
	default:
		return "", fmt.Errorf("there are several state directories of application %q: name one with --state-dir: %s", c.ApplicationID, strings.Join(dirs, ", "))
	}
}

// listedStore is a store as list prints it.
type listedStore struct {
	Task      string `json:"task"`
	Store     string `json:"store"`
	Kind      string `json:"kind,omitempty"`
	Entries   int64  `json:"entries"`
	Bytes     int64  `json:"bytes"` // of keys and values
	Changelog string `json:"changelog,omitempty"`
	Offset    *int64 `json:"offset,omitempty"` // the next one to read of the changelog
}

func (p *program) listState(s *storedState) error {
	list := []listedStore{}
	for _, i := range s.spaces.List() {
		l, err := p.listStore(s, i)
		if err != nil {
			return err
		}
		list = append(list, l)
	}
	if p.command.json {
		return p.printJSON(list)
	}
	w := tabwriter.NewWriter(p.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "TASK\tSTORE\tKIND\tENTRIES\tBYTES\tCHANGELOG\tOFFSET")
	for _, l := range list {
		offset := "-"
		if l.Offset != nil {
			offset = fmt.Sprint(*l.Offset)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%s\t%s\n", l.Task, l.Store, cmp.Or(l.Kind, "not in the topology"), l.Entries, l.Bytes, cmp.Or(l.Changelog, "-"), offset)
	}
	return w.Flush()
}

func (p *program) listStore(s *storedState, i state.SpaceInfo) (listedStore, error) {
	l := listedStore{Task: i.Task, Store: i.Store}
	if spec := p.storeSpec(i.Store); spec != nil {
		l.Kind, l.Changelog = spec.Kind.String(), spec.ChangelogTopic(p.config.ApplicationID)
		if spec.Global {
			l.Kind, l.Changelog = "global "+l.Kind, ""
		}
	}
	space, _ := s.spaces.Find(i.Task, i.Store)
	o, ok, err := space.Offset()
	if err != nil {
		return l, err
	}
	if ok {
		l.Offset = &o.Next
	}
	it := space.Scan(nil, nil, false)
	for it.Next() {
		l.Entries++
		l.Bytes += int64(len(it.Key()) + len(it.Value()))
	}
	return l, it.Close()
}

// storeSpec returns what the topology says of a store, or nil.
func (p *program) storeSpec(name string) *topology.StoreSpec {
	for _, s := range p.graph.Stores() {
		if s.Name == name {
			return s
		}
	}
	return nil
}

func (p *program) dumpState(s *storedState, name string) error {
	spec := p.storeSpec(name)
	if spec == nil {
		var names []string
		for _, s := range p.graph.Stores() {
			names = append(names, s.Name)
		}
		return fmt.Errorf("dump store %q: %w; there are: %q", name, ErrNoStore, names)
	}
	if s.kept.Topology != nil {
		for _, e := range topology.Diff(s.kept.Topology, p.graph.Model()) {
			if e.What == "store" && e.Name == name && e.Verdict != topology.Safe {
				fmt.Fprintf(p.err, "%s: another topology wrote the state, and it is read as this one's: %v\n", p.name, e)
			}
		}
	}
	x := &p.command.state
	d := &dump{entryText: textOfEntries(p.graph, spec), out: json.NewEncoder(p.out), left: x.limit}
	if d.left == 0 {
		d.left = math.MaxInt
	}
	d.out.SetEscapeHTML(false)
	if err := d.bounds(x.from, x.to); err != nil {
		return fmt.Errorf("dump store %q: %w", name, err)
	}
	for _, i := range s.spaces.List() {
		if i.Store != name || x.task != "" && x.task != i.Task {
			continue
		}
		space, _ := s.spaces.Find(i.Task, i.Store)
		if err := d.space(i.Task, space); err != nil {
			return err
		}
	}
	return nil
}

// dump prints entries of a store.
type dump struct {
	*entryText
	out      *json.Encoder
	from, to []byte // bytes of keys, to included; nil: no bound
	left     int
}

func (d *dump) bounds(from, to string) (err error) {
	for _, b := range []struct {
		text string
		key  *[]byte
	}{{from, &d.from}, {to, &d.to}} {
		if b.text == "" {
			continue
		}
		if d.keys == nil {
			return errors.New("its keys have no text: it is an operator's own affair; leave --from and --to out")
		}
		if *b.key, err = d.keys.Append([]byte{}, json.RawMessage(b.text)); err != nil {
			return fmt.Errorf("key %q: %w", b.text, err)
		}
	}
	return nil
}

// space prints what a task has of the store.
func (d *dump) space(id string, s *state.Space) (err error) {
	var from, to []byte // the local keys of these stores are the keys themselves: the others are looked through
	if task.LayoutOf(d.spec) == state.WholeKey {
		from = d.from
		if d.to != nil {
			to = append(bytes.Clone(d.to), 0)
		}
	}
	it := s.Scan(from, to, false)
	defer func() { err = errors.Join(err, it.Close()) }()
	var last storedEntry
	for d.left > 0 && it.Next() {
		e := d.entry(bytes.Clone(it.Key()), bytes.Clone(it.Value()))
		if d.from != nil && bytes.Compare(e.key, d.from) < 0 || d.to != nil && bytes.Compare(e.key, d.to) > 0 {
			continue
		}
		if d.spec.Kind == topology.VersionedStore && bytes.Equal(last.key, e.key) {
			e.To = last.From // the newest comes first
		}
		e.Task, last = id, e
		if err := d.out.Encode(e); err != nil {
			return fmt.Errorf("print store %q: %w", d.spec.Name, err)
		}
		d.left--
	}
	return nil
}

// entryText makes text of the local entries of a store.
type entryText struct {
	spec         *topology.StoreSpec
	format       state.Format
	keys, values serde.Serde[json.RawMessage] // nil for a store that is an operator's own affair
}

func textOfEntries(g *topology.Graph, spec *topology.StoreSpec) *entryText {
	x := &entryText{spec: spec, format: task.FormatOf(spec)}
	x.keys, x.values, _ = g.StoreText(spec)
	return x
}

// storedEntry is an entry of a store as JSON. What cannot be decoded is there as bytes.
type storedEntry struct {
	Task       string          `json:"task,omitempty"`
	Key        json.RawMessage `json:"key,omitempty"`
	KeyBytes   []byte          `json:"keyBytes,omitempty"`
	Value      json.RawMessage `json:"value,omitempty"`
	ValueBytes []byte          `json:"valueBytes,omitempty"`
	Deleted    bool            `json:"deleted,omitempty"`
	Timestamp  *time.Time      `json:"timestamp,omitempty"`
	From       *time.Time      `json:"from,omitempty"` // of the window, the session or the version
	To         *time.Time      `json:"to,omitempty"`
	Sequence   uint32          `json:"sequence,omitempty"` // of several values of a key and window
	Headers    []textHeader    `json:"headers,omitempty"`
	Error      string          `json:"error,omitempty"`

	key []byte
}

// textHeader is a header as JSON: its value is a string if it is one in UTF-8, else it is there as bytes.
type textHeader struct {
	Key        string  `json:"key"`
	Value      *string `json:"value,omitempty"`
	ValueBytes []byte  `json:"valueBytes,omitempty"`
}

// entry makes text of a local entry; a nil value is a delete.
func (x *entryText) entry(key, value []byte) storedEntry {
	p, err := x.format.Split(key, value)
	if err != nil {
		return storedEntry{KeyBytes: key, ValueBytes: value, Error: err.Error(), key: key}
	}
	e := storedEntry{Deleted: p.Deleted, Sequence: p.Sequence, key: p.Key}
	var errs []error
	if e.Key, err = textOfBytes(x.keys, p.Key); err != nil || e.Key == nil {
		e.KeyBytes, errs = p.Key, append(errs, wrapText("key", err))
	}
	if !p.Deleted {
		if e.Value, err = textOfBytes(x.values, p.Value); err != nil || e.Value == nil {
			e.ValueBytes, errs = p.Value, append(errs, wrapText("value", err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		e.Error = err.Error()
	}
	if p.Timestamp != state.NoTimestamp {
		e.Timestamp = timeAt(p.Timestamp)
	}
	switch x.spec.Kind {
	case topology.WindowStore:
		e.From = timeAt(p.Start)
		if end := p.Start + x.spec.WindowMs; end > p.Start {
			e.To = timeAt(end)
		}
	case topology.SessionStore:
		e.From, e.To = timeAt(p.Start), timeAt(p.End)
	case topology.VersionedStore:
		e.From = timeAt(p.Start)
	}
	e.Headers = textOfHeaders(p.Headers)
	return e
}

func timeAt(ms int64) *time.Time {
	t := time.UnixMilli(ms).UTC()
	return &t
}

func textOfHeaders(all serde.Headers) (list []textHeader) {
	for h := range all.All() {
		x := textHeader{Key: h.Key}
		if s := string(h.Value); h.Value != nil && strings.ToValidUTF8(s, "") == s {
			x.Value = &s
		} else {
			x.ValueBytes = h.Value
		}
		list = append(list, x)
	}
	return list
}

func wrapText(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

// textOfBytes decodes bytes, nil without a serde.
func textOfBytes(s serde.Serde[json.RawMessage], b []byte) (text json.RawMessage, err error) {
	if s == nil {
		return nil, nil
	}
	defer func() {
		if p := recover(); p != nil {
			text, err = nil, fmt.Errorf("the serde panicked: %v", p)
		}
	}()
	if text, err = s.Decode(b); err == nil && !json.Valid(text) {
		return nil, errors.New("it has no text in JSON")
	}
	return text, err
}

// exportHead is what an export says of where its stores come from.
type exportHead struct {
	Application string       `json:"application"`
	Fingerprint string       `json:"fingerprint"` // of the topology
	Made        time.Time    `json:"made"`
	Kept        keptTopology `json:"kept"`
}

// fingerprint returns a hash of a topology: two with the same are the same.
func fingerprint(m *topology.Model) string {
	b, err := json.Marshal(m)
	if err != nil {
		panic("streams: a topology that has no JSON: " + err.Error()) // it has been read from some
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func (p *program) exportState(s *storedState, application, name string) error {
	if s.kept.Topology == nil {
		return fmt.Errorf("export the state in %s: no application has run there", s.dir.Path())
	}
	head, err := json.Marshal(exportHead{application, fingerprint(s.kept.Topology), time.Now().UTC().Truncate(time.Second), s.kept})
	if err != nil {
		return fmt.Errorf("export the state in %s: %w", s.dir.Path(), err)
	}
	var stores, entries int64
	err = newFile(name, func(w io.Writer) error {
		x := state.NewExporter(w, head)
		for _, i := range s.spaces.List() {
			space, _ := s.spaces.Find(i.Task, i.Store)
			n, err := x.Store(space)
			if err != nil {
				return err
			}
			stores, entries = stores+1, entries+n
		}
		return x.End()
	})
	if err != nil {
		return fmt.Errorf("export the state in %s: %w", s.dir.Path(), err)
	}
	_, err = fmt.Fprintf(p.out, "exported %d stores with %d entries to %s\n", stores, entries, name)
	return err
}

// newFile writes a file that is there when all of it is, and not before. It replaces none.
func newFile(name string, write func(io.Writer) error) error {
	if _, err := os.Lstat(name); err == nil {
		return fmt.Errorf("%s is there already: remove it, or choose another name", name)
	}
	f, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	err = write(f)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// importState puts the stores of an export into the state directory. The file is read twice: before anything is written all
// of it is known to be right.
func (p *program) importState(c Config, name string) (err error) {
	f, err := os.Open(name)
	if err != nil {
		return fmt.Errorf("import state: %w", err)
	}
	defer f.Close()
	head, stores, err := checkExport(f)
	if err != nil {
		return fmt.Errorf("import %s: %w", name, err)
	}
	if err := head.fits(c.ApplicationID, p.graph.Model()); err != nil {
		return fmt.Errorf("import %s: %w", name, err)
	}
	if c.StateDir, err = oneStateDir(c); errors.Is(err, state.ErrNoState) {
		c.StateDir, err = c.stateDirs()[0], nil
	}
	if err != nil {
		return err
	}
	s, err := openStorage(c, c.Logger, func(*state.CorruptError) {})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	i := &importer{storage: s, replace: p.command.state.replace}
	if err := i.check(head, stores); err != nil {
		return fmt.Errorf("import %s into %s: %w", name, s.dir.Path(), err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("import %s: %w", name, err)
	}
	if err := i.load(f); err != nil {
		return fmt.Errorf("import %s into %s: %w", name, s.dir.Path(), err)
	}
	for _, x := range i.left {
		fmt.Fprintf(p.out, "left out: store %s of task %s, which stands for no part of a changelog\n", x.Store, x.Task)
	}
	_, err = fmt.Fprintf(p.out, "imported %d stores with %d entries into %s\n", len(i.loaded), i.entries, s.dir.Path())
	return err
}

// checkExport reads a whole export, and returns what it is about.
func checkExport(r io.Reader) (head exportHead, stores []state.ExportedStore, err error) {
	err = state.ReadExport(r, func(b []byte) error {
		if err := json.Unmarshal(b, &head); err != nil || head.Kept.Topology == nil || head.Fingerprint != fingerprint(head.Kept.Topology) {
			return fmt.Errorf("%w: its head cannot be read", errors.Join(state.ErrExport, err))
		}
		return nil
	}, func(s state.ExportedStore) (func(key, value []byte) error, error) {
		stores = append(stores, s)
		return func(_, _ []byte) error { return nil }, nil
	})
	return head, stores, err
}

// fits refuses an export that is not of this application.
func (h *exportHead) fits(application string, m *topology.Model) error {
	if h.Application != application {
		return fmt.Errorf("it is of application %q, and this is %q, whose changelogs are others: its state cannot be brought up to date; "+
			"import it with --application-id %[1]s", h.Application, application)
	}
	if err := sameState(h.Kept.Topology, m); err != nil {
		return fmt.Errorf("its topology is another one than this program's: import it with the version that wrote it, "+
			"and start this one on that directory, which does what diff says:\n%w", err)
	}
	return nil
}

// sameState refuses topologies whose state is not the same.
func sameState(old, new *topology.Model) error {
	if fingerprint(old) == fingerprint(new) {
		return nil
	}
	var all []error
	for _, e := range topology.Diff(old, new) {
		if e.Verdict != topology.Safe {
			all = append(all, errors.New(e.String()))
		}
	}
	return errors.Join(all...)
}

// importer writes the stores of an export to a state directory. Their offsets come last: state that was not written to its
// end counts as none.
type importer struct {
	*storage
	replace bool
	kept    keptTopology
	loaded  []loadedStore
	left    []state.ExportedStore
	entries int64
}

type loadedStore struct {
	batch  *state.SpaceBatch
	offset state.Offset
}

// check refuses an export that does not fit the directory.
func (i *importer) check(head exportHead, stores []state.ExportedStore) error {
	i.kept = head.Kept
	there, err := keptIn(i.dir)
	if err != nil {
		return err
	}
	if there.Topology != nil {
		if err := sameState(there.Topology, head.Kept.Topology); err != nil {
			return fmt.Errorf("another topology wrote what is there: choose an empty directory with --state-dir:\n%w", err)
		}
	}
	var found []string
	for _, s := range stores {
		if _, ok := i.disk.Find(s.Task, s.Store); ok && !i.replace && !s.Offset.IsZero() {
			found = append(found, fmt.Sprintf("%s of task %s", s.Store, s.Task))
		}
	}
	if len(found) > 0 {
		return fmt.Errorf("there are stores already: choose an empty directory with --state-dir, or give --replace to have them replaced: %s", strings.Join(found, ", "))
	}
	return nil
}

// load reads the export into the directory.
func (i *importer) load(r io.Reader) error {
	defer func() {
		for _, s := range i.loaded {
			s.batch.Close()
		}
	}()
	if err := state.ReadExport(r, func([]byte) error { return nil }, i.store); err != nil {
		return err
	}
	for _, s := range i.loaded {
		s.batch.SetOffset(s.offset)
		if err := s.batch.Apply(); err != nil {
			return err
		}
	}
	if there, err := i.dir.Topology(); err != nil || there != nil {
		return errors.Join(err, i.engine.Flush())
	}
	b, err := json.Marshal(i.kept)
	if err == nil {
		err = i.dir.SetTopology(b)
	}
	return errors.Join(err, i.engine.Flush())
}

const importBatch = 1 << 20 // bytes

// store makes room for a store, and returns what takes its entries.
func (i *importer) store(s state.ExportedStore) (entry func(key, value []byte) error, err error) {
	if s.Offset.IsZero() {
		i.left = append(i.left, s)
		return func(_, _ []byte) error { return nil }, nil
	}
	if err := i.disk.Remove(s.Task, s.Store); err != nil {
		return nil, err
	}
	space, err := i.disk.Open(s.Task, s.Store, s.Layout)
	if err != nil {
		return nil, err
	}
	b := space.NewBatch()
	i.loaded = append(i.loaded, loadedStore{b, s.Offset})
	return func(key, value []byte) error {
		i.entries++
		b.Put(key, append([]byte{}, value...))
		if b.Bytes() < importBatch {
			return nil
		}
		return b.Apply()
	}, nil
}
