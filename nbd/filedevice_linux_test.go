package nbd

import (
	"context"
	"flag"
	"net"
	"os"
	"os/signal"
	"runtime/pprof"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

var (
	serveFile   = flag.String("serve-file", "", "file that TestServeFile serves until it is interrupted")
	serveSocket = flag.String("serve-socket", "", "socket it listens at")
	serveCPU    = flag.String("serve-cpuprofile", "", "where it writes a profile")
)

// fileDevice is a Device over one plain file.
type fileDevice struct {
	f    *os.File
	fd   int
	size int64
}

func newFileDevice(t testing.TB, name string) *fileDevice {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return &fileDevice{f, int(f.Fd()), st.Size()}
}

func (d *fileDevice) ReadAt(p []byte, off int64) (int, error)  { return d.f.ReadAt(p, off) }
func (d *fileDevice) WriteAt(p []byte, off int64) (int, error) { return d.f.WriteAt(p, off) }
func (d *fileDevice) Sync() error                              { return unix.Fdatasync(d.fd) }
func (d *fileDevice) Size() int64                              { return d.size }

func (d *fileDevice) ReadNow(p []byte, off int64) (bool, error) {
	n, err := preadNow(d.fd, p, off)
	if err == unix.EOPNOTSUPP { // tmpfs, which has everything in memory
		n, err = unix.Pread(d.fd, p, off)
	}
	if err == unix.EAGAIN || err == nil && n < len(p) {
		return false, nil
	}
	return err == nil, err
}

func (d *fileDevice) WriteNow(p []byte, off int64) (bool, error) {
	_, err := d.f.WriteAt(p, off)
	return err == nil, err
}

func (d *fileDevice) Trim(off, n int64) error {
	return unix.Fallocate(d.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

func (d *fileDevice) Zero(off, n int64, hole bool) error {
	if hole {
		return d.Trim(off, n)
	}
	err := unix.Fallocate(d.fd, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if err == unix.EOPNOTSUPP { // tmpfs
		_, err = d.f.WriteAt(make([]byte, n), off)
	}
	return err
}

func (d *fileDevice) Cache(off, n int64) error {
	return unix.Fadvise(d.fd, off, n, unix.FADV_WILLNEED)
}

func (d *fileDevice) Contexts() []string { return []string{BaseAllocation} }

func (d *fileDevice) Status(_ context.Context, _ string, off, n int64, extent func(int64, uint32) error) error {
	for end := off + n; off < end; {
		data, err := unix.Seek(d.fd, off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			data = d.size
		} else if err != nil {
			return err
		}
		if data > off {
			if err := extent(data-off, StateHole|StateZero); err != nil {
				return err
			}
			off = data
			continue
		}
		hole, err := unix.Seek(d.fd, off, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if err := extent(hole-off, 0); err != nil {
			return err
		}
		off = hole
	}
	return nil
}

// oneExport is Exports with a single device under every name.
type oneExport struct{ export Export }

func (e *oneExport) List(context.Context) ([]ExportInfo, error) {
	return []ExportInfo{e.export.ExportInfo}, nil
}

func (e *oneExport) Open(context.Context, string) (*Export, error) {
	x := e.export
	return &x, nil
}

// TestServeFile is a server for measurements (bench/nbdpeers.py).
func TestServeFile(t *testing.T) {
	if *serveFile == "" {
		t.Skip("no file to serve")
	}
	if *serveCPU != "" {
		f, err := os.Create(*serveCPU)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			t.Fatal(err)
		}
		defer pprof.StopCPUProfile()
	}
	l, err := net.Listen("unix", *serveSocket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(t.Context(), os.Interrupt, unix.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, func() { l.Close() })
	cfg := &ServerConfig{Exports: &oneExport{Export{Device: newFileDevice(t, *serveFile), MultiConn: true}}}
	var all sync.WaitGroup
	defer all.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		all.Go(func() {
			if err := Serve(ctx, conn, cfg); err != nil {
				t.Log(err)
			}
		})
	}
}
