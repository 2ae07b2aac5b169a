-- One query (psql variable type) by both methods: kept in demo.hit, the best five printed.
\set query `cat query.sql`

-- R, the number of texts on the subject, is what the summary needs; five are printed.
SELECT greatest(count(*), 5) AS k FROM demo.text WHERE subject = :'type' \gset

SELECT clock_timestamp() AS started \gset
INSERT INTO demo.hit (type, method, text_id, mention, start_char, score)
SELECT :'type', 'entity', answer.* FROM (:query) AS answer;
UPDATE demo.query
SET ms = 1000 * extract(epoch FROM clock_timestamp() - :'started'::timestamptz)
WHERE type = :'type'
RETURNING E'\n' || rpad(format('── %s ', type), 96 - length(round(ms, 1)::text), '─')
          || format(' %s ms', round(ms, 1));

SELECT format('  %s  %s  %s  %s',
              CASE WHEN t.subject = :'type' THEN '✓' ELSE '✗' END,
              to_char(h.score, '0.00'),
              rpad(demo.excerpt(h.mention, 0, 20), 20),
              demo.excerpt(t.body, h.start_char, 66))
FROM demo.hit AS h JOIN demo.text AS t ON t.id = h.text_id
WHERE h.type = :'type' AND h.method = 'entity'
ORDER BY h.score DESC
LIMIT 5;

WITH query AS (SELECT plainto_tsquery('english', :'type') AS words)
INSERT INTO demo.hit (type, method, text_id, score)
SELECT :'type', 'keyword', id, ts_rank(to_tsvector('english', body), words)
FROM demo.text, query
WHERE to_tsvector('english', body) @@ words;

SELECT format('  Full-text search for ''%s'' finds %s', :'type',
              CASE count(*) WHEN 0 THEN 'nothing.' WHEN 1 THEN '1 text:'
                            ELSE count(*) || ' texts:' END)
FROM demo.hit WHERE type = :'type' AND method = 'keyword';

SELECT format('  %s  %s', CASE WHEN subject = :'type' THEN '✓' ELSE '✗' END,
              demo.excerpt(marked, strpos(marked, '['), 95))
FROM (SELECT t.subject, h.score, h.text_id,
             ts_headline('english', t.body, plainto_tsquery('english', :'type'),
                         'HighlightAll=true, StartSel=[, StopSel=]') AS marked
      FROM demo.hit AS h JOIN demo.text AS t ON t.id = h.text_id
      WHERE h.type = :'type' AND h.method = 'keyword') AS found
ORDER BY score DESC, text_id
LIMIT 3;
