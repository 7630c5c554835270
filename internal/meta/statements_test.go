package meta

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"
)

// TestStatements checks the registry; Open itself prepares every text.
func TestStatements(t *testing.T) {
	db, err := Open(context.Background(), Config{Path: t.TempDir() + "/meta.db"})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	seen := make(map[string]statement)
	foreign := regexp.MustCompile(`(?i)\b(json\w*|strftime|datetime|ifnull|rowid|group_concat|glob|insert or|replace into|autoincrement|now)\b|\?|==`)
	for s := range numStatements {
		text := statementText[s]
		if text == "" {
			t.Errorf("statement %d has no text", s)
			continue
		}
		if other, ok := seen[text]; ok {
			t.Errorf("statements %d and %d have the same text", other, s)
		}
		seen[text] = s
		if m := foreign.FindString(text); m != "" {
			t.Errorf("%q is not in both engines: %s", m, text)
		}
		if db.write[s] == nil || s.reads() != (db.read[s] != nil) {
			t.Errorf("not prepared where it should be: %s", text)
		}
		if s.reads() == strings.Contains(text, "RETURNING") && s.reads() {
			t.Errorf("reads and writes: %s", text)
		}
	}
}

// TestPlans wants the queries that mass deletion asks again and again to be
// answered by an index, whatever else is in the tables.
func TestPlans(t *testing.T) {
	db, err := Open(t.Context(), Config{Path: t.TempDir() + "/meta.db"})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for s, want := range map[statement][]string{
		versionChores:    {"versions_due (chain=?)", "versions_stale (chain=?)", "graves_open (chain=?)"},
		versionChore:     {"versions_due (chain=?)", "versions_stale (chain=?)", "graves_open (chain=?)"},
		choreChains:      {"versions_due (chain>?)", "versions_stale (chain>?)", "graves_open (chain>?)"},
		versionChildren:  {"versions_parent (parent=?)"},
		versionOffspring: {"COVERING INDEX versions_parent (parent=?)"},
		versionNewest:    {"versions_sealed (volume=?)"},
		versionLast:      {"versions_volume (volume=?)"},
		storageFirst:     {"COVERING INDEX versions_metered (metered>? AND metered<?)"},
		gravesOfChild:    {"graves_child (child=?)"},
		jobQueued:        {"jobs_queued (subject=? AND kind=?)"},
		jobHasten:        {"jobs_queued (subject=? AND kind=?)"},
		jobNextRun:       {"COVERING INDEX jobs_waiting (state=? AND run_after>?)"},
		jobRunnable:      {"jobs_state (state=? AND lane=?)"},
	} {
		plan := planOf(t, db, s)
		for _, index := range want {
			if !strings.Contains(plan, index) {
				t.Errorf("the plan of %q does not use %s:\n%s", statementText[s], index, plan)
			}
		}
		if strings.Contains(plan, "SCAN") || s != versionChildren && strings.Contains(plan, "FOR ORDER BY") && !strings.Contains(plan, "MERGE") && s != gravesOfChild {
			t.Errorf("%q looks at more than it needs:\n%s", statementText[s], plan)
		}
	}
}

// planOf is how SQLite is going to answer a statement.
func planOf(t *testing.T, db *DB, s statement) string {
	t.Helper()
	var args []any
	for n := strings.Count(statementText[s], "$"); n > 0 && len(args) < 2; n-- {
		if strings.Contains(statementText[s], fmt.Sprintf("$%d", len(args)+1)) {
			args = append(args, 1)
		}
	}
	rows, err := db.writer.Query("EXPLAIN QUERY PLAN "+s.sqliteText(), args...)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var plan strings.Builder
	for rows.Next() {
		var id, parent, unused int
		var detail string
		if err := rows.Scan(&id, &parent, &unused, &detail); err != nil {
			t.Fatal(err)
		}
		plan.WriteString(detail + "\n")
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return plan.String()
}
