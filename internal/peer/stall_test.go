package peer

import (
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/internal/transfer"
)

// TestStall gives up a stream on which nothing comes any more.
func TestStall(t *testing.T) {
	release := make(chan struct{})
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write(appendStreamHeader(nil))
		w.(http.Flusher).Flush()
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}))
	defer s.Close()
	defer close(release)
	c := NewClient("east", s.Listener.Addr().String(), &tls.Config{RootCAs: s.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs, ServerName: "example.com"})
	defer c.Close()
	c.stall = 50 * time.Millisecond
	src := c.As("a").Source(transfer.Handle{})
	f, err := src.Blocks(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Next(); !snapferry.IsKind(err, snapferry.Unavailable) {
		t.Errorf("blocks: got %v, want Unavailable", err)
	}
	err = src.Nodes(t.Context(), nil, func(snapferry.Position, *blockmap.Node) error { return nil })
	if !snapferry.IsKind(err, snapferry.Unavailable) {
		t.Errorf("nodes: got %v, want Unavailable", err)
	}
}
