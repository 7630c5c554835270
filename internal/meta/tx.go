package meta

import (
	"context"
	"database/sql"

	"github.com/snapferry/snapferry"
)

// Tx is a transaction of Update or View: a scope, so it carries its context.
// Methods that find nothing return NotFound, naming the thing; methods that
// write return Exists when an id or name is taken and Conflict when something
// still refers to what goes, or what is referred to is not there.
type Tx struct {
	ctx        context.Context
	db         *DB
	tx         *sql.Tx
	statements *statements
	wrote      bool
}

func (tx *Tx) stmt(s statement) (*sql.Stmt, error) {
	p := tx.statements[s]
	if p == nil {
		return nil, snapferry.Errorf(snapferry.Internal, "a write in a transaction that only reads")
	}
	return tx.tx.StmtContext(tx.ctx, p), nil
}

// exec runs a statement and returns how many rows it changed.
func (tx *Tx) exec(s statement, args ...any) (int64, error) {
	st, err := tx.stmt(s)
	if err != nil {
		return 0, err
	}
	r, err := st.ExecContext(tx.ctx, args...)
	if err != nil {
		return 0, err
	}
	n, err := r.RowsAffected()
	tx.wrote = tx.wrote || n > 0
	return n, err
}

// run runs a statement; the rest says what is being done.
func (tx *Tx) run(s statement, args []any, format string, what ...any) error {
	_, err := tx.exec(s, args...)
	return fail(err, format, what...)
}

// one runs a statement that changes exactly one row, else the thing is not
// there.
func (tx *Tx) one(s statement, args []any, noun string, id any) error {
	n, err := tx.exec(s, args...)
	if err != nil {
		return fail(err, "write %s %v", noun, id)
	}
	if n == 0 {
		return notFound(noun, id)
	}
	return nil
}

func notFound(noun string, id any) error {
	return snapferry.Errorf(snapferry.NotFound, "no %s %v", noun, id)
}

// each calls fn for each row of a query; fn only reads the row.
func (tx *Tx) each(s statement, args []any, fn func(scanner) error) error {
	st, err := tx.stmt(s)
	if err != nil {
		return err
	}
	rows, err := st.QueryContext(tx.ctx, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		tx.wrote = tx.wrote || !s.reads()
		if err := fn(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// get reads one row.
func get[T any](tx *Tx, s statement, scan func(scanner, *T) error, noun string, id any, args ...any) (v T, err error) {
	found := false
	err = tx.each(s, args, func(r scanner) error { found = true; return scan(r, &v) })
	switch {
	case err != nil:
		var zero T
		return zero, fail(err, "read %s %v", noun, id)
	case !found:
		return v, notFound(noun, id)
	}
	return v, nil
}

// list reads all rows.
func list[T any](tx *Tx, s statement, scan func(scanner, *T) error, noun string, args ...any) ([]T, error) {
	var all []T
	err := tx.each(s, args, func(r scanner) error {
		var v T
		err := scan(r, &v)
		all = append(all, v)
		return err
	})
	if err != nil {
		return nil, fail(err, "list %s", noun)
	}
	return all, nil
}
