// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package shisa_test

import (
	"go/ast"
	"go/token"
	"slices"
	"testing"
)

// counting packages decide what is clean, in use or needed. A source that they could not read
// must be written down as a blind spot, never skipped.
var counting = []string{
	"internal/check", "internal/scan", "internal/disk", "internal/hypervisor", "internal/linux",
	"internal/image/qcow2", "internal/holders",
}

// noError are functions whose last result is no error, so that it may be left out.
var noError = []string{
	"strings.Cut", "strings.CutPrefix", "strings.CutSuffix", "bytes.Cut", "bytes.CutPrefix",
	"bytes.CutSuffix", "utf8.DecodeRune", "utf8.DecodeRuneInString", "slices.BinarySearch",
	"slices.BinarySearchFunc", "bits.Add64", "bits.Mul64", "bits.Sub64", "filepath.Split",
	"path.Split",
}

// TestNoSilentErrors finds errors that nobody hears of. Where dropping one is right, a comment at
// that place says why.
func TestNoSilentErrors(t *testing.T) {
	ours := lastResults(t)
	for _, s := range sources(t) {
		if s.test || !slices.Contains(counting, s.dir) {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if st, ok := n.(ast.Stmt); ok && explained(s, st) {
				return true
			}
			switch n := n.(type) {
			case *ast.IfStmt:
				if comparesErr(n.Cond, token.NEQ) && onlyLeaves(n.Body) {
					t.Errorf("%s: an error is skipped; record a blind spot", s.at(n))
				}
				if setsErr(n.Init) && n.Else == nil && comparesErr(n.Cond, token.EQL) && !ends(n.Body) {
					t.Errorf("%s: nothing is done about the error; record a blind spot", s.at(n))
				}
			case *ast.AssignStmt:
				if dropsLast(n, ours) {
					t.Errorf("%s: the last result is dropped; if it is an error, record a blind spot", s.at(n))
				}
			}
			return true
		})
	}
}

// explained tells whether a comment stands at st: on its first line, or on the line before or after.
func explained(s *source, st ast.Stmt) bool {
	line := s.at(st).Line
	return slices.ContainsFunc(s.file.Comments, func(c *ast.CommentGroup) bool {
		begin, end := s.at(c).Line, s.fset.Position(c.End()).Line
		return begin <= line+1 && end >= line-1
	})
}

// comparesErr tells whether cond is err op nil. Where more is asked than that, as by errors.Is or
// a second condition, somebody thought about which error it is.
func comparesErr(cond ast.Expr, op token.Token) bool {
	b, ok := cond.(*ast.BinaryExpr)
	if !ok || b.Op != op {
		return false
	}
	x, _ := b.X.(*ast.Ident)
	y, _ := b.Y.(*ast.Ident)
	return x != nil && y != nil && x.Name == "err" && y.Name == "nil"
}

// setsErr tells whether st makes a new variable err, which nobody sees after the if.
func setsErr(st ast.Stmt) bool {
	a, ok := st.(*ast.AssignStmt)
	return ok && a.Tok == token.DEFINE && slices.ContainsFunc(a.Lhs, func(e ast.Expr) bool {
		id, ok := e.(*ast.Ident)
		return ok && id.Name == "err"
	})
}

// onlyLeaves tells whether body does nothing but go on to the next item, or say that all is well.
func onlyLeaves(body *ast.BlockStmt) bool {
	if len(body.List) == 0 {
		return true
	}
	switch st := body.List[0].(type) {
	case *ast.BranchStmt:
		return true
	case *ast.ReturnStmt:
		return len(st.Results) > 0 && isNil(st.Results[len(st.Results)-1])
	}
	return false
}

// ends tells whether body leaves its block at its end, so that what follows is the other case.
func ends(body *ast.BlockStmt) bool {
	if len(body.List) == 0 {
		return false
	}
	switch body.List[len(body.List)-1].(type) {
	case *ast.ReturnStmt, *ast.BranchStmt:
		return true
	}
	return false
}

// lastResults tells of each function and method of the project, by its bare name, whether the last
// result of any that is called so is an error.
func lastResults(t *testing.T) map[string]bool {
	t.Helper()
	isErr := map[string]bool{}
	for _, s := range sources(t) {
		for _, d := range s.file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || f.Type.Results == nil {
				continue
			}
			id, ok := f.Type.Results.List[len(f.Type.Results.List)-1].Type.(*ast.Ident)
			isErr[f.Name.Name] = isErr[f.Name.Name] || ok && id.Name == "error"
		}
	}
	return isErr
}

// dropsLast tells whether a call's last result, or its only one, goes to "_" and may be an error.
func dropsLast(a *ast.AssignStmt, ours map[string]bool) bool {
	if len(a.Rhs) != 1 {
		return false
	}
	call, ok := a.Rhs[0].(*ast.CallExpr)
	last, blank := a.Lhs[len(a.Lhs)-1].(*ast.Ident)
	if !ok || !blank || last.Name != "_" {
		return false
	}
	name := ""
	switch fun := call.Fun.(type) {
	case *ast.Ident:
		name = fun.Name
	case *ast.SelectorExpr:
		name = fun.Sel.Name
		if x, ok := fun.X.(*ast.Ident); ok && slices.Contains(noError, x.Name+"."+name) {
			return false
		}
	}
	isErr, known := ours[name]
	return isErr || !known
}

func isNil(e ast.Expr) bool {
	id, ok := e.(*ast.Ident)
	return ok && id.Name == "nil"
}
