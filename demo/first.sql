\set query `cat query.sql`
\set ECHO queries
\pset tuples_only off
\pset format aligned
\pset footer off
:query;
\pset tuples_only on
\pset format unaligned
\set ECHO none
\echo EXPLAIN (COSTS OFF) of the same query:
EXPLAIN (COSTS OFF) :query;
