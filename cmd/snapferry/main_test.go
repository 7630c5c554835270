package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob/s3blob/s3test"
)

func TestMain(m *testing.M) {
	// What regions in S3 find in their environment; nothing of the user's counts.
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": s3test.AccessKey, "AWS_SECRET_ACCESS_KEY": s3test.SecretKey, "AWS_EC2_METADATA_DISABLED": "true",
		"AWS_CONFIG_FILE": os.DevNull, "AWS_SHARED_CREDENTIALS_FILE": os.DevNull, "AWS_PROFILE": "", "AWS_REGION": "", "AWS_SESSION_TOKEN": "",
	} {
		if err := os.Setenv(name, value); err != nil {
			panic(err)
		}
	}
	testscript.Main(m, map[string]func(){"snapferry": main})
}

// TestScripts runs testdata/script: the program as users see it.
func TestScripts(t *testing.T) {
	devs := &devs{cmds: map[*testscript.TestScript]*exec.Cmd{}}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"regions": devs.regions, "disk": scriptDisk, "poke": scriptPoke, "same": scriptSame, "json": scriptJSON, "code": scriptCode, "upkeep": scriptUpkeep,
		},
	})
}

// scriptDisk makes a sparse disk: NAME SIZE SEED.
func scriptDisk(ts *testscript.TestScript, _ bool, args []string) {
	size, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	seed, err := strconv.ParseUint(args[2], 10, 64)
	ts.Check(err)
	ts.Check(makeSparse(ts.MkAbs(args[0]), size, seed))
}

// makeSparse makes a file of random pieces with holes and zeros between them.
func makeSparse(path string, size int64, seed uint64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return err
	}
	random, content := rand.New(rand.NewPCG(seed, 1)), rand.NewChaCha8([32]byte{byte(seed)})
	for range 8 {
		p := make([]byte, 1+random.IntN(256<<10))
		if random.IntN(4) > 0 {
			content.Read(p)
		}
		off := random.Int64N(size)
		if _, err := f.WriteAt(p[:min(int64(len(p)), size-off)], off); err != nil {
			return err
		}
	}
	return nil
}

// scriptPoke writes at a place of a file: FILE OFFSET TEXT.
func scriptPoke(ts *testscript.TestScript, _ bool, args []string) {
	off, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	f, err := os.OpenFile(ts.MkAbs(args[0]), os.O_WRONLY, 0)
	ts.Check(err)
	_, err = f.WriteAt([]byte(args[2]), off)
	ts.Check(err)
	ts.Check(f.Close())
}

// scriptSame compares two disks.
func scriptSame(ts *testscript.TestScript, neg bool, args []string) {
	_, err := compareFiles(context.Background(), ts.MkAbs(args[0]), ts.MkAbs(args[1]))
	if neg == (err == nil) {
		ts.Fatalf("%s and %s: %v", args[0], args[1], err)
	}
}

// scriptJSON puts a field of the JSON in stdout into a variable: VAR a.b.0.c.
func scriptJSON(ts *testscript.TestScript, _ bool, args []string) {
	var v any
	d := json.NewDecoder(strings.NewReader(ts.ReadFile("stdout")))
	d.UseNumber()
	ts.Check(d.Decode(&v))
	for _, key := range strings.Split(args[1], ".") {
		switch x := v.(type) {
		case map[string]any:
			v = x[key]
		case []any:
			i, err := strconv.Atoi(key)
			ts.Check(err)
			if i >= len(x) {
				ts.Fatalf("%s: there are %d of them", args[1], len(x))
			}
			v = x[i]
		default:
			v = nil
		}
	}
	if v == nil {
		ts.Fatalf("the output has no %s", args[1])
	}
	ts.Setenv(args[0], fmt.Sprint(v))
}

// scriptCode runs snapferry and wants an exit code: CODE ARG... What it printed
// is in the files stdout.txt and stderr.txt.
func scriptCode(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	cmd := exec.Command("snapferry", args[1:]...)
	cmd.Dir = ts.Getenv("WORK")
	cmd.Env = append(os.Environ(), configVariable+"="+ts.Getenv(configVariable))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	_ = cmd.Run() // the code is what counts
	ts.Check(os.WriteFile(ts.MkAbs("stdout.txt"), stdout.Bytes(), 0o600))
	ts.Check(os.WriteFile(ts.MkAbs("stderr.txt"), stderr.Bytes(), 0o600))
	if got := cmd.ProcessState.ExitCode(); got != want {
		ts.Fatalf("exit code %d, want %d\n%s%s", got, want, stdout.String(), stderr.String())
	}
}

// testApp is a run of the program in this process.
func testApp(t testing.TB) *app {
	t.Helper()
	exe, err := exec.LookPath("snapferry")
	if err != nil {
		t.Fatal(err)
	}
	return &app{
		stdin: strings.NewReader(""), stdout: io.Discard, stderr: io.Discard, output: "text",
		getenv: func(string) string { return "" }, home: os.UserHomeDir, executable: func() (string, error) { return exe, nil },
	}
}

func TestExitCodes(t *testing.T) {
	doc, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range snapferry.Kinds() {
		code := exitCode(&snapferry.Error{Kind: k})
		if code == exitOK || code == exitInternal != (k == snapferry.Internal) {
			t.Errorf("kind %s has exit code %d", k, code)
		}
		if !strings.Contains(exitHelp, fmt.Sprintf("%3d  ", code)) || !strings.Contains(string(doc), fmt.Sprintf("| %d | ", code)) {
			t.Errorf("exit code %d of kind %s is not documented", code, k)
		}
	}
}
