-- R-precision: of the first R answers, the share that is right, R being the number of texts on
-- the subject. An answer that never came counts as wrong.
CREATE TEMP VIEW summary AS
SELECT q.id, q.type, q.ms, size.r,
       count(*) FILTER (WHERE h.method = 'entity') / size.r::numeric AS entity,
       count(*) FILTER (WHERE h.method = 'keyword') / size.r::numeric AS keyword
FROM demo.query AS q
JOIN (SELECT subject, count(*) AS r FROM demo.text GROUP BY subject) AS size
     ON size.subject = q.type
LEFT JOIN (SELECT h.type, h.method, t.subject,
                  row_number() OVER (PARTITION BY h.type, h.method
                                     ORDER BY h.score DESC, h.text_id) AS place
           FROM demo.hit AS h JOIN demo.text AS t ON t.id = h.text_id) AS h
     ON h.type = q.type AND h.subject = q.type AND h.place <= size.r
GROUP BY q.id, q.type, q.ms, size.r;

\pset format aligned
\pset tuples_only off
\pset footer off
\pset linestyle unicode
SELECT type, texts, "entity retrieval", "full-text search", "query ms"
FROM (
    SELECT id, type, r::text AS texts, round(entity, 2) AS "entity retrieval",
           round(keyword, 2) AS "full-text search", round(ms, 1) AS "query ms"
    FROM summary
    UNION ALL
    SELECT NULL, 'mean', '', round(avg(entity), 2), round(avg(keyword), 2), round(avg(ms), 1)
    FROM summary
) AS line
ORDER BY id NULLS LAST;
