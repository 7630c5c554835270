package simtest

import (
	"context"
	"sync"
	"testing"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/control"
	"github.com/snapferry/snapferry/internal/transfer"
)

// A Link leads to another region inside the process. It can be down, and what
// goes over it can be watched and changed.
type Link struct {
	from snapferry.RegionName

	mu   sync.Mutex
	to   *Region
	down bool
	wrap func(transfer.Source) transfer.Source
}

// NewLink returns a link that a region with a name uses; Join says where it
// leads.
func NewLink(from snapferry.RegionName) *Link { return &Link{from: from} }

// Join lets the link lead to a region, also to what that is after a restart.
func (l *Link) Join(to *Region) { l.set(func() { l.to = to }) }

// Down breaks the link, or mends it.
func (l *Link) Down(down bool) { l.set(func() { l.down = down }) }

func (l *Link) isDown() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.down
}

// Wrap puts something around the sources that the link gives; nil for nothing.
func (l *Link) Wrap(fn func(transfer.Source) transfer.Source) { l.set(func() { l.wrap = fn }) }

func (l *Link) set(fn func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fn()
}

// As is what a region's configuration wants of a peer.
func (l *Link) As(account string) transfer.Remote {
	return &direct{link: l, caller: transfer.Caller{Region: l.from, Account: account}}
}

type direct struct {
	link   *Link
	caller transfer.Caller
}

func (d *direct) host() (control.Host, func(transfer.Source) transfer.Source, error) {
	d.link.mu.Lock()
	defer d.link.mu.Unlock()
	if d.link.down || d.link.to == nil {
		return control.Host{}, nil, snapferry.Errorf(snapferry.Unavailable, "the link is down")
	}
	return control.Host{Region: d.link.to.live.Load()}, d.link.wrap, nil
}

func (d *direct) Hello(ctx context.Context) (transfer.Hello, error) {
	h, _, err := d.host()
	if err != nil {
		return transfer.Hello{}, err
	}
	return h.Hello(ctx, d.caller)
}

func (d *direct) Describe(ctx context.Context, id snapferry.SnapshotID) (transfer.Description, error) {
	h, _, err := d.host()
	if err != nil {
		return transfer.Description{}, err
	}
	return h.Describe(ctx, d.caller, id)
}

func (d *direct) Members(ctx context.Context, set snapferry.SetID) ([]snapferry.SnapshotID, error) {
	h, _, err := d.host()
	if err != nil {
		return nil, err
	}
	return h.Members(ctx, d.caller, set)
}

func (d *direct) Pin(ctx context.Context, p transfer.Pin) (transfer.Handle, error) {
	h, _, err := d.host()
	if err != nil {
		return transfer.Handle{}, err
	}
	return h.Pin(ctx, d.caller, p)
}

func (d *direct) Renew(ctx context.Context, x transfer.Handle) error {
	h, _, err := d.host()
	if err != nil {
		return err
	}
	return h.Renew(ctx, d.caller, x)
}

func (d *direct) Release(ctx context.Context, x transfer.Handle, ending snapferry.Ending) error {
	h, _, err := d.host()
	if err != nil {
		return err
	}
	return h.Release(ctx, d.caller, x, ending)
}

func (d *direct) Pins(ctx context.Context, after string) ([]transfer.Held, error) {
	h, _, err := d.host()
	if err != nil {
		return nil, err
	}
	return h.Pins(ctx, d.caller, after)
}

func (d *direct) Source(x transfer.Handle) transfer.Source { return &directSource{d, x} }

type directSource struct {
	*direct
	handle transfer.Handle
}

func (s *directSource) open(ctx context.Context) (transfer.Source, error) {
	h, wrap, err := s.host()
	if err != nil {
		return nil, err
	}
	src, err := h.Source(ctx, s.caller, s.handle)
	if err == nil && wrap != nil {
		src = wrap(src)
	}
	return src, err
}

func (s *directSource) Nodes(ctx context.Context, at []snapferry.Position, fn func(snapferry.Position, *blockmap.Node) error) error {
	src, err := s.open(ctx)
	if err != nil {
		return err
	}
	return src.Nodes(ctx, at, fn)
}

func (s *directSource) Blocks(ctx context.Context, want []transfer.Want) (transfer.Frames, error) {
	src, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	return src.Blocks(ctx, want)
}

// Pair makes two regions that know each other, "east" and "west", at work, with
// an account "a" in both, over drivers of their buckets; nil for one in memory.
// The first link is the one from west to east.
func Pair(tb testing.TB, f *Factory, atEast, atWest blob.Driver) (east, west *Region, toEast, toWest *Link) {
	tb.Helper()
	toEast, toWest = NewLink("west"), NewLink("east")
	east = f.NewRegion(tb, Options{Name: "east", Jobs: true, Driver: atEast, Peers: map[snapferry.RegionName]func(string) transfer.Remote{"west": toWest.As}})
	west = f.NewRegion(tb, Options{Name: "west", Jobs: true, Driver: atWest, Peers: map[snapferry.RegionName]func(string) transfer.Remote{"east": toEast.As}})
	toEast.Join(east)
	toWest.Join(west)
	return east, west, toEast, toWest
}
