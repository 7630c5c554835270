package source

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapferry/snapferry"
)

// formats are the formats of disk images that qemu-nbd reads for us, by QEMU's
// names, with the ends of file names that stand for them.
var formats = map[string][]string{
	"qcow2": {".qcow2"},
	"vmdk":  {".vmdk"},
	"vpc":   {".vhd"},
	"vhdx":  {".vhdx"},
	"vdi":   {".vdi"},
}

// RawFormat is the format of a disk image that is the disk's bytes.
const RawFormat = "raw"

// FormatOf returns the format of an image by the end of its name, RawFormat when
// that says nothing. The content is not looked at: a guest that writes the header
// of another format to its raw disk must not choose what is read.
func FormatOf(path string) string {
	end := strings.ToLower(filepath.Ext(path))
	for format, ends := range formats {
		if slices.Contains(ends, end) {
			return format
		}
	}
	return RawFormat
}

// CheckFormat reports, as Invalid, a format that is not known, and gives a known
// one QEMU's name.
func CheckFormat(format string) (string, error) {
	if format == "vhd" {
		format = "vpc"
	}
	if _, ok := formats[format]; ok || format == RawFormat {
		return format, nil
	}
	return "", snapferry.Errorf(snapferry.Invalid, "unknown format %q of a disk image", format).
		WithHint("known are raw, qcow2, vmdk, vhd, vhdx and vdi")
}

// qemuNBD is the program that reads other formats.
const qemuNBD = "qemu-nbd"

// startPatience is how long qemu-nbd may take until it listens.
const startPatience = 30 * time.Second

// Serve starts qemu-nbd on an image of a format and returns a connection to it.
// It listens at a socket in a private folder, which is gone again when Serve
// returns, serves nobody else, and ends with the connection: also if this process
// ends before. bitmap, if not empty, is a bitmap of the image to be shown.
//
// Errors: Unsupported when qemu-nbd is not installed; Invalid when it refuses the
// image, with what it says; NotFound and Denied as with Open.
func Serve(ctx context.Context, path, format, bitmap string) (net.Conn, error) {
	f, err := OpenRead(path)
	if err != nil {
		return nil, err
	}
	f.Close()
	program, err := exec.LookPath(qemuNBD)
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Unsupported, "%s is an image of format %s, which %s reads, and that is not installed", path, format, qemuNBD).
			WithHint("install it (package qemu-utils of Debian and Ubuntu, qemu-img of Fedora), or convert the image to raw elsewhere")
	}
	dir, err := os.MkdirTemp("", "snapferry-nbd-") // mode 0700
	if err != nil {
		return nil, fail("make", "a private folder", err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "s")
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fail("find", path, err)
	}
	args := []string{"--read-only", "--shared=1", "--export-name=", "--socket=" + socket, "--format=" + format}
	if bitmap != "" {
		args = append(args, "--bitmap="+bitmap)
	}
	var said bytes.Buffer
	cmd := exec.Command(program, append(args, "--", abs)...)
	cmd.Stderr, cmd.SysProcAttr = &said, &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fail("start", qemuNBD, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	conn, err := connect(ctx, socket, ended)
	if err == nil {
		return conn, nil
	}
	if errors.Is(err, errEnded) {
		text := strings.TrimSpace(strings.TrimPrefix(said.String(), qemuNBD+": "))
		return nil, snapferry.Errorf(snapferry.Invalid, "%s does not read %s: %s", qemuNBD, path, text)
	}
	_ = cmd.Process.Kill() // it serves nobody
	<-ended
	return nil, err
}

var errEnded = errors.New("the program ended")

// greeted waits until the server has said something, which stays to be read. The
// error says that it ended instead, or ctx.
func greeted(ctx context.Context, conn net.Conn) error {
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return err
	}
	var n int
	var perr error
	err = raw.Read(func(fd uintptr) bool {
		var p [1]byte
		n, _, perr = unix.Recvfrom(int(fd), p[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return perr != unix.EAGAIN && perr != unix.EINTR
	})
	if err = errors.Join(err, perr); err == nil && n == 0 {
		err = io.EOF
	}
	return err
}

// connect connects to a socket as soon as somebody listens there.
func connect(ctx context.Context, socket string, ended <-chan error) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", socket)
		if err == nil {
			// It may listen before it has looked at the image: when it greets, it has.
			if greeted(ctx, conn) == nil {
				return conn, nil
			}
			conn.Close()
			select {
			case <-ended:
				return nil, errEnded
			case <-ctx.Done():
				return nil, snapferry.Errorf(snapferry.Unavailable, "%s does not greet after %v", qemuNBD, startPatience)
			}
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
			return nil, snapferry.Errorf(snapferry.Unavailable, "connect to %s: %w", qemuNBD, err)
		}
		select {
		case <-tick.C:
		case <-ended:
			return nil, errEnded
		case <-ctx.Done():
			return nil, snapferry.Errorf(snapferry.Unavailable, "%s does not listen after %v", qemuNBD, startPatience)
		}
	}
}
