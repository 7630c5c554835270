package meta

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/snapferry/snapferry"
)

const rebuildHint = "keep the file and the bucket; move meta.db away and run: snapferry recover --config FILE"

// fail gives an error of the database its Kind and says what was being done.
func fail(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	doing := fmt.Sprintf(format, args...)
	e := snapferry.Errorf(kindOf(err), "%s: %w", doing, err)
	if e.Kind == snapferry.Corrupt && snapferry.HintOf(err) == "" {
		e.Hint = rebuildHint
	}
	if e.Kind == snapferry.Full {
		e.Hint = "make room on the file system that has the region's metadata"
	}
	return e
}

// failFile is fail for errors of the file system.
func failFile(err error, path string) error {
	kind, hint := snapferry.Unavailable, ""
	switch {
	case errors.Is(err, fs.ErrNotExist):
		kind, hint = snapferry.NotFound, "make the folder first"
	case errors.Is(err, fs.ErrExist):
		kind = snapferry.Exists
	case errors.Is(err, fs.ErrPermission):
		kind = snapferry.Denied
	}
	e := snapferry.Errorf(kind, "open metadata %s: %w", path, err)
	e.Hint = hint
	return e
}

func kindOf(err error) snapferry.Kind {
	var (
		own *snapferry.Error
		bad *badColumn
		lit *sqlite.Error
	)
	switch {
	case errors.As(err, &own):
		return own.Kind
	case errors.Is(err, context.Canceled):
		return snapferry.Cancelled
	case errors.Is(err, context.DeadlineExceeded):
		return snapferry.Unavailable
	case errors.As(err, &bad):
		return snapferry.Corrupt
	case errors.Is(err, sql.ErrNoRows):
		return snapferry.NotFound
	case errors.Is(err, sql.ErrConnDone), strings.HasSuffix(err.Error(), "database is closed"):
		return snapferry.Unavailable
	case errors.As(err, &lit):
		return kindOfCode(lit.Code())
	}
	return snapferry.Internal
}

func kindOfCode(code int) snapferry.Kind {
	switch code {
	case sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY:
		return snapferry.Exists
	case sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY, sqlite3.SQLITE_CONSTRAINT_TRIGGER:
		return snapferry.Conflict
	case sqlite3.SQLITE_IOERR_SHMSIZE:
		return snapferry.Full // the index of the write-ahead log could not grow
	}
	switch code & 0xff {
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_NOMEM:
		return snapferry.Unavailable
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT:
		return snapferry.Corrupt
	case sqlite3.SQLITE_FULL:
		return snapferry.Full
	case sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_AUTH:
		return snapferry.Denied
	case sqlite3.SQLITE_INTERRUPT:
		return snapferry.Cancelled
	}
	return snapferry.Internal
}

// isBusy reports whether another process was in the way, so that the same
// transaction may do better later.
func isBusy(err error) bool {
	var lit *sqlite.Error
	if !errors.As(err, &lit) {
		return false
	}
	c := lit.Code() & 0xff
	return c == sqlite3.SQLITE_BUSY || c == sqlite3.SQLITE_LOCKED
}
