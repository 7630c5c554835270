package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
	"github.com/snapferry/snapferry/nbd"
)

// The numbers of the protocol that the attacks need.
const (
	rawRead, rawWrite, rawFlush, rawTrim, rawZero = 0, 1, 3, 4, 6

	rawInvalid, rawFull = 22, 28
)

// raw is a connection that is open and keeps to no rules.
type raw struct {
	net.Conn
	t *testing.T
}

// newRaw connects to the socket of a volume and opens it without structured
// replies; it is nil when the server closed the connection.
func newRaw(t *testing.T, socket string) *raw {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var greeting [18]byte
	if _, err := io.ReadFull(conn, greeting[:]); err != nil {
		conn.Close()
		return nil
	}
	hello := []byte{0, 0, 0, 3} // fixed newstyle, no zeroes
	hello = append(hello, "IHAVEOPT\x00\x00\x00\x07\x00\x00\x00\x06\x00\x00\x00\x00\x00\x00"...)
	if _, err := conn.Write(hello); err != nil {
		t.Fatal(err)
	}
	for {
		var reply [20]byte
		if _, err := io.ReadFull(conn, reply[:]); err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, conn, int64(binary.BigEndian.Uint32(reply[16:]))); err != nil {
			t.Fatal(err)
		}
		switch kind := binary.BigEndian.Uint32(reply[12:]); kind {
		case 1:
			return &raw{conn, t}
		case 3:
		default:
			t.Fatalf("the server does not open the volume: got reply %#x", kind)
		}
	}
}

func rawRequest(cmd, flags uint16, off uint64, length uint32) []byte {
	p := []byte{0x25, 0x60, 0x95, 0x13}
	p = binary.BigEndian.AppendUint16(p, flags)
	p = binary.BigEndian.AppendUint16(p, cmd)
	p = binary.BigEndian.AppendUint64(p, 7)
	p = binary.BigEndian.AppendUint64(p, off)
	return binary.BigEndian.AppendUint32(p, length)
}

// ask sends a request and returns the error and the payload of the reply.
func (r *raw) ask(request, payload []byte) (errno uint32, data []byte) {
	r.t.Helper()
	if _, err := r.Write(append(request, payload...)); err != nil {
		r.t.Fatal(err)
	}
	var reply [16]byte
	if _, err := io.ReadFull(r, reply[:]); err != nil {
		r.t.Fatal(err)
	}
	errno = binary.BigEndian.Uint32(reply[4:])
	if errno == 0 && binary.BigEndian.Uint16(request[6:]) == rawRead {
		data = make([]byte, binary.BigEndian.Uint32(request[24:]))
		if _, err := io.ReadFull(r, data); err != nil {
			r.t.Fatal(err)
		}
	}
	return errno, data
}

// ended wants the server to close the connection.
func (r *raw) ended() {
	r.t.Helper()
	if err := r.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		r.t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, r); errors.Is(err, os.ErrDeadlineExceeded) {
		r.t.Errorf("the connection is open, after %d bytes more", n)
	}
	r.Close()
}

// memory returns how many bytes of memory a region has.
func (k *killed) memory(r snapferry.RegionName) int64 {
	k.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", k.run[r].cmd.Process.Pid))
	if err != nil {
		k.t.Skip(err) // another system
	}
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); f[0] == "VmRSS:" {
			n, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				k.t.Fatal(err)
			}
			return n << 10
		}
	}
	k.t.Fatal("the process has no VmRSS")
	return 0
}

// attacked is a volume with something on it.
type attacked struct {
	*served
	content []byte // of its beginning
}

const attackedSize = 64 << 20

func newAttacked(t *testing.T) *attacked {
	t.Helper()
	a := &attacked{served: newServed(t, attackedSize)}
	for i := range uint64(256) {
		a.content = append(a.content, page(i+1)...)
	}
	a.works(true)
	return a
}

func (a *attacked) socket() string {
	u, err := nbd.ParseURI(a.uri)
	if err != nil {
		a.t.Fatal(err)
	}
	return u.Address
}

// works wants the volume to be as it was, for a client that behaves; write writes
// it.
func (a *attacked) works(write bool) {
	a.t.Helper()
	disk, err := nbd.Dial(a.t.Context(), a.uri, nil)
	if err != nil {
		a.t.Fatal(err)
	}
	defer disk.Close()
	if write {
		if _, err := disk.WriteAt(a.content, 0); err != nil {
			a.t.Fatal(err)
		}
	}
	p := make([]byte, len(a.content))
	if _, err := disk.ReadAt(p, 0); err != nil {
		a.t.Fatal(err)
	}
	if !bytes.Equal(p, a.content) {
		a.t.Error("the volume has other content")
	}
	if err := disk.Sync(); err != nil {
		a.t.Error(err)
	}
}

// TestVolumeBadRequests sends what no client should: each request is refused by
// itself.
func TestVolumeBadRequests(t *testing.T) {
	t.Parallel()
	a := newAttacked(t)
	r := newRaw(t, a.socket())
	defer r.Close()
	const end = attackedSize
	for _, x := range []struct {
		name       string
		cmd, flags uint16
		off        uint64
		length     uint32
		payload    int
		want       uint32
	}{
		{"read across the end", rawRead, 0, end - 4096, 4097, 0, rawInvalid},
		{"read behind the end", rawRead, 0, end, 1, 0, rawInvalid},
		{"read at the end of numbers", rawRead, 0, 1<<64 - 1, 4096, 0, rawInvalid},
		{"read of 4 GiB", rawRead, 0, 0, 1<<32 - 1, 0, rawInvalid},
		{"read of more than a payload", rawRead, 0, 0, nbd.MaxPayload + 1, 0, rawInvalid},
		{"read of nothing", rawRead, 0, 0, 0, 0, 0},
		{"read of the last byte", rawRead, 0, end - 1, 1, 0, 0},
		{"read with unknown flags", rawRead, 1 << 15, 0, 4096, 0, rawInvalid},
		{"write across the end", rawWrite, 0, end - 4096, 8192, 8192, rawFull},
		{"write at the end of numbers", rawWrite, 0, 1<<64 - 4096, 8192, 8192, rawFull},
		{"write of more than a payload", rawWrite, 0, 0, nbd.MaxPayload + 1, nbd.MaxPayload + 1, rawInvalid},
		{"write of 3 bytes", rawWrite, 0, 4<<20 + 4095, 3, 3, 0},
		{"trim across the end", rawTrim, 0, end - 4096, 8192, 0, rawInvalid},
		{"trim of 4 GiB", rawTrim, 0, 0, 1<<32 - 1, 0, rawInvalid},
		{"trim of a byte", rawTrim, 0, 1, 1, 0, 0},
		{"zeros across the end", rawZero, 0, end - 1, 2, 0, rawFull},
		{"zeros of 5 bytes", rawZero, 0, 4<<20 + 4094, 5, 0, 0},
		{"flush with a range", rawFlush, 0, 4096, 4096, 0, rawInvalid},
		{"unknown command", 99, 0, 0, 0, 0, rawInvalid},
		{"block status that was not negotiated", 7, 0, 0, 4096, 0, rawInvalid},
	} {
		payload := bytes.Repeat([]byte{0xee}, x.payload)
		if got, _ := r.ask(rawRequest(x.cmd, x.flags, x.off, x.length), payload); got != x.want {
			t.Errorf("%s: got error %d, want %d", x.name, got, x.want)
		}
	}
	if got, p := r.ask(rawRequest(rawRead, 0, 1, 8191), nil); got != 0 || !bytes.Equal(p, a.content[1:8192]) {
		t.Errorf("an unaligned read after all that: got error %d", got)
	}
	a.works(false)

	// What cannot be skipped, or is no request, ends the connection.
	big := newRaw(t, a.socket())
	if _, err := big.Write(rawRequest(rawWrite, 0, 0, 1<<32-1)); err != nil {
		t.Fatal(err)
	}
	big.ended()
	noise := newRaw(t, a.socket())
	if _, err := noise.Write(bytes.Repeat([]byte("noise"), 100)); err != nil {
		t.Fatal(err)
	}
	noise.ended()
	a.works(false)
	a.sound()
}

// TestVolumeBadClients has clients that stop in the middle of something: others
// do not notice, memory stays bounded, and the export can be ended.
func TestVolumeBadClients(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the time of grace")
	}
	t.Parallel()
	a := newAttacked(t)
	var stuck []*raw
	// Half a request, half a payload: gone, or there for ever. A half-sent write
	// changes nothing, or whole pages of its own range.
	for _, p := range [][]byte{
		rawRequest(rawWrite, 0, 8<<20, 4096)[:20],
		append(rawRequest(rawWrite, 0, 8<<20, 4096), make([]byte, 4000)...),
		append(rawRequest(rawWrite, 0, 8<<20, 8<<20), make([]byte, 3<<20)...),
		rawRequest(rawWrite, 0, 8<<20, nbd.MaxPayload),
	} {
		for range 4 {
			gone, stays := newRaw(t, a.socket()), newRaw(t, a.socket())
			for _, r := range []*raw{gone, stays} {
				if _, err := r.Write(p); err != nil {
					t.Fatal(err)
				}
			}
			gone.Close()
			stuck = append(stuck, stays)
		}
	}
	a.works(false)
	// Clients that ask and ask and never read.
	before := a.memory(demoEast)
	asking := bytes.Repeat(rawRequest(rawRead, 0, 0, 1<<20), 4096)
	for range 8 {
		r := newRaw(t, a.socket())
		if err := r.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		for {
			if _, err := r.Write(asking); err != nil {
				break // the server has stopped reading
			}
		}
		stuck = append(stuck, r)
	}
	a.works(true)
	after := a.memory(demoEast)
	t.Logf("memory: %d MiB, with 8 clients that do not read %d MiB", before>>20, after>>20)
	if limit := int64(8*2*nbd.MaxPayload) + 256<<20; after > limit {
		t.Errorf("the region has %d MiB, want at most %d", after>>20, limit>>20)
	}
	began := time.Now()
	if _, err := a.c.UnexportVolume(t.Context(), a.volume.ID); err != nil {
		t.Fatal(err)
	}
	t.Logf("the export ended within %v", time.Since(began))
	for _, r := range stuck {
		r.ended()
	}
	a.uri = a.export(a.volume.ID, client.VolumeExportRequest{})
	a.works(false)
	a.sound()
}

// TestVolumeManyConnections connects a thousand times at once: all work, those
// beyond are closed, and there is room again afterwards.
func TestVolumeManyConnections(t *testing.T) {
	t.Parallel()
	a := newAttacked(t)
	const limit = 1000 // docs/operations.md
	before := a.memory(demoEast)
	var all []*raw
	for {
		r := newRaw(t, a.socket())
		if r == nil {
			break
		}
		if all = append(all, r); len(all) > limit {
			t.Fatalf("%d connections are open", len(all))
		}
	}
	if len(all) != limit {
		t.Errorf("got %d connections, want %d", len(all), limit)
	}
	for i, r := range all {
		at := uint64(i%256) * pageSize
		if got, p := r.ask(rawRequest(rawRead, 0, at, pageSize), nil); got != 0 || !bytes.Equal(p, a.content[at:at+pageSize]) {
			t.Errorf("connection %d: got error %d", i, got)
		}
		if got, _ := r.ask(rawRequest(rawWrite, 0, at, pageSize), a.content[at:at+pageSize]); got != 0 {
			t.Errorf("connection %d: a write: got error %d", i, got)
		}
	}
	after := a.memory(demoEast)
	t.Logf("memory: %d MiB, with %d connections %d MiB", before>>20, len(all), after>>20)
	if after > 1<<30 {
		t.Errorf("the region has %d MiB", after>>20)
	}
	for _, r := range all {
		r.Close()
	}
	for again := newRaw(t, a.socket()); again == nil; again = newRaw(t, a.socket()) {
		if err := pause(t.Context(), 10*time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
	a.works(false)
	a.sound()
}

// TestVolumeDeletedExport wants a deleted volume to be gone for its clients.
func TestVolumeDeletedExport(t *testing.T) {
	t.Parallel()
	a := newAttacked(t)
	old, err := nbd.Dial(t.Context(), a.uri, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if err := a.c.DeleteVolume(t.Context(), a.volume.ID); !snapferry.IsKind(err, snapferry.Conflict) {
		t.Errorf("deletion of an exported volume: got %v", err)
	}
	a.works(false)
	if _, err := a.c.UnexportVolume(t.Context(), a.volume.ID); err != nil {
		t.Fatal(err)
	}
	if err := a.c.DeleteVolume(t.Context(), a.volume.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := old.ReadAt(make([]byte, 1), 0); !snapferry.IsKind(err, snapferry.Unavailable) {
		t.Errorf("read through an old connection: got %v", err)
	}
	if _, err := nbd.Dial(t.Context(), a.uri, nil); !snapferry.IsKind(err, snapferry.Unavailable) {
		t.Errorf("a new connection: got %v", err)
	}
	_, err = a.c.ExportVolume(t.Context(), a.volume.ID, client.VolumeExportRequest{})
	if k := snapferry.KindOf(err); k != snapferry.NotFound && k != snapferry.Conflict {
		t.Errorf("export: got %v", err)
	}
	a.restart()
	if _, err := nbd.Dial(t.Context(), a.uri, nil); err == nil {
		t.Error("after a restart the deleted volume is served")
	}
	a.sound()
}
