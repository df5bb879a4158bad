package topology

import (
	"cmp"
	"fmt"
	"html"
	"slices"
	"strings"
)

// drawing is a model as a graph of boxes: topics, operators and stores, with arrows.
type drawing struct {
	boxes  []*box
	arrows [][2]*box
	byID   map[string]*box
	groups []string // titles of sub-topologies, by index
}

type shape uint8

const (
	topicShape shape = iota
	operatorShape
	storeShape
)

type box struct {
	id, text string
	shape    shape
	group    int // index of the sub-topology, -1: topics are outside
	layer    int
	x, y     int
}

func draw(m *Model) *drawing {
	d := &drawing{byID: map[string]*box{}}
	for i, s := range m.Subtopologies {
		title := fmt.Sprintf("sub-topology %d", s.ID)
		if s.Global {
			title += " (global store)"
		}
		d.groups = append(d.groups, title)
		for _, n := range s.Nodes {
			d.box(operatorShape, n.Name, i)
		}
		for _, n := range s.Nodes {
			own := d.box(operatorShape, n.Name, i)
			for _, t := range n.Topics {
				d.arrow(d.box(topicShape, t, -1), own)
			}
			if n.Pattern != "" {
				d.arrow(d.box(topicShape, n.Pattern, -1), own)
			}
			if n.Topic != "" {
				d.arrow(own, d.box(topicShape, n.Topic, -1))
			} else if n.Kind == sinkNode.String() {
				d.arrow(own, d.box(topicShape, "(named by a function)", -1))
			}
			for _, st := range n.Stores {
				d.arrow(own, d.box(storeShape, st, i))
			}
			for _, c := range n.Children {
				d.arrow(own, d.box(operatorShape, c, i))
			}
		}
	}
	return d
}

func (d *drawing) box(s shape, text string, group int) *box {
	id := string("tos"[s]) + text
	if d.byID[id] == nil {
		d.byID[id] = &box{id: fmt.Sprintf("%c%d", "tos"[s], len(d.boxes)), text: text, shape: s, group: group}
		d.boxes = append(d.boxes, d.byID[id])
	}
	return d.byID[id]
}

func (d *drawing) arrow(from, to *box) {
	if a := [2]*box{from, to}; !slices.Contains(d.arrows, a) {
		d.arrows = append(d.arrows, a)
	}
}

// Mermaid returns the topology as a Mermaid flowchart, which many viewers of Markdown draw.
func (m *Model) Mermaid() string {
	d := draw(m)
	var b strings.Builder
	b.WriteString("flowchart TD\n")
	text := func(s string) string { return strings.ReplaceAll(html.EscapeString(s), "&#", "#") }
	write := func(indent string, x *box) {
		form := [...]string{`%s%s[/"%s"/]` + "\n", `%s%s["%s"]` + "\n", `%s%s[("%s")]` + "\n"}[x.shape]
		fmt.Fprintf(&b, form, indent, x.id, text(x.text))
	}
	for _, x := range d.boxes {
		if x.group < 0 {
			write("  ", x)
		}
	}
	for i, title := range d.groups {
		fmt.Fprintf(&b, "  subgraph g%d[\"%s\"]\n", i, text(title))
		for _, x := range d.boxes {
			if x.group == i {
				write("    ", x)
			}
		}
		b.WriteString("  end\n")
	}
	for _, a := range d.arrows {
		line := "-->"
		if a[1].shape == storeShape {
			line = "-.-"
		}
		fmt.Fprintf(&b, "  %s %s %s\n", a[0].id, line, a[1].id)
	}
	return b.String()
}

// DOT returns the topology in the language of Graphviz.
func (m *Model) DOT() string {
	d := draw(m)
	var b strings.Builder
	b.WriteString("digraph topology {\n  rankdir=TB;\n  node [fontname=\"sans-serif\"];\n")
	write := func(indent string, x *box) {
		fmt.Fprintf(&b, "%s%s [label=%q, shape=%s];\n", indent, x.id, x.text, [...]string{"parallelogram", "box", "cylinder"}[x.shape])
	}
	for _, x := range d.boxes {
		if x.group < 0 {
			write("  ", x)
		}
	}
	for i, title := range d.groups {
		fmt.Fprintf(&b, "  subgraph cluster_%d {\n    label=%q;\n", i, title)
		for _, x := range d.boxes {
			if x.group == i {
				write("    ", x)
			}
		}
		b.WriteString("  }\n")
	}
	for _, a := range d.arrows {
		style := ""
		if a[1].shape == storeShape {
			style = " [style=dashed, dir=none]"
		}
		fmt.Fprintf(&b, "  %s -> %s%s;\n", a[0].id, a[1].id, style)
	}
	b.WriteString("}\n")
	return b.String()
}

// Sizes of the SVG, in its units.
const (
	boxHeight = 34
	rowHeight = 74
	columnGap = 28
	charWidth = 7
	margin    = 24
)

func (x *box) width() int { return max(70, len(x.text)*charWidth+24) }

// layers puts each box below all that lead to it, as far as there is no circle, and each layer in an order that keeps
// arrows short.
func (d *drawing) layers() [][]*box {
	for range d.boxes {
		moved := false
		for _, a := range d.arrows {
			if a[1].layer <= a[0].layer && a[0].layer < len(d.boxes) && a[1] != a[0] {
				a[1].layer, moved = a[0].layer+1, true
			}
		}
		if !moved {
			break
		}
	}
	var rows [][]*box
	for _, x := range d.boxes {
		for len(rows) <= x.layer {
			rows = append(rows, nil)
		}
		rows[x.layer] = append(rows[x.layer], x)
	}
	rows = slices.DeleteFunc(rows, func(r []*box) bool { return len(r) == 0 })
	for i, row := range rows {
		for _, x := range row {
			x.layer = i
		}
	}
	return rows
}

// place gives every box its place, and returns the size of the whole.
func (d *drawing) place() (width, height int) {
	rows := d.layers()
	for i, row := range rows {
		slices.SortStableFunc(row, func(a, b *box) int { return cmp.Compare(d.above(a), d.above(b)) })
		x := margin
		for _, b := range row {
			b.x, b.y = max(x, d.above(b)-b.width()/2), margin+i*rowHeight
			x = b.x + b.width() + columnGap
		}
		width = max(width, x-columnGap+margin)
	}
	return width, len(rows)*rowHeight - rowHeight + boxHeight + 2*margin
}

// above returns the middle of the boxes in higher layers that lead to a box.
func (d *drawing) above(x *box) int {
	sum, n := 0, 0
	for _, a := range d.arrows {
		if a[1] == x && a[0].layer < x.layer {
			sum, n = sum+a[0].x+a[0].width()/2, n+1
		}
	}
	if n == 0 {
		return 0
	}
	return sum / n
}

// SVG returns a drawing of the topology, which needs nothing else to be shown.
func (m *Model) SVG() string {
	d := draw(m)
	width, height := d.place()
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" font-family="sans-serif" font-size="12">
<style>:root{color-scheme:light dark}.topic rect{fill:#dbeafe;stroke:#1d4ed8}.operator rect{fill:#f3f4f6;stroke:#4b5563}.store rect{fill:#fef3c7;stroke:#b45309}text{fill:#111827;text-anchor:middle}path{fill:none;stroke:#6b7280}</style>
<defs><marker id="end" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" style="fill:#6b7280"/></marker></defs>
`, width, height)
	for _, a := range d.arrows {
		from, to := a[0], a[1]
		x1, y1, x2, y2 := from.x+from.width()/2, from.y+boxHeight, to.x+to.width()/2, to.y
		if to.layer <= from.layer { // back up, in a circle
			x1, y1, x2, y2 = from.x+from.width(), from.y+boxHeight/2, to.x+to.width(), to.y+boxHeight/2
			fmt.Fprintf(&b, `<path d="M%d %dC%d %d %d %d %d %d" marker-end="url(#end)"/>`+"\n", x1, y1, x1+60, y1, x2+60, y2, x2, y2)
			continue
		}
		style := ` marker-end="url(#end)"`
		if to.shape == storeShape {
			style = ` stroke-dasharray="4 3"`
		}
		fmt.Fprintf(&b, `<path d="M%d %dC%d %d %d %d %d %d"%s/>`+"\n", x1, y1, x1, (y1+y2)/2, x2, (y1+y2)/2, x2, y2, style)
	}
	for _, x := range d.boxes {
		round := [...]int{boxHeight / 2, 4, 10}[x.shape]
		title := [...]string{"topic", "operator", "store"}[x.shape]
		fmt.Fprintf(&b, `<g class="%s"><title>%[1]s %s</title><rect x="%d" y="%d" width="%d" height="%d" rx="%d"/><text x="%d" y="%d">%[2]s</text></g>`+"\n",
			title, html.EscapeString(x.text), x.x, x.y, x.width(), boxHeight, round, x.x+x.width()/2, x.y+boxHeight/2+4)
	}
	b.WriteString("</svg>\n")
	return b.String()
}
