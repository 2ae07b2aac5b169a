-- The SQL that reads an indexed table and writes its mentions and its memory. The library runs it with the
-- rights of the table's owner.

-- A generation is a table of mentions with its memory: the present one, or the one that ner_reindex fills.
-- The first that is returned has the memory that says what is to be done, and whose rows' locks say who does it.
CREATE FUNCTION ner_retriever.generations(
    index_id integer,
    OUT next boolean, OUT mentions oid, OUT memory oid, OUT fingerprint text, OUT dims integer, OUT storage text
)
RETURNS SETOF record
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    t record;
BEGIN
    FOR t IN
        SELECT g.*, m.storage, m.base, c.relowner AS owner, e.relowner AS memory_owner, b.relowner AS base_owner
        FROM ner_retriever.managed_index AS m
        CROSS JOIN LATERAL (
            VALUES (true, m.next_mentions, m.next_memory, m.next_fingerprint, m.next_dims),
                   (false, m.mentions, m.memory, m.fingerprint, m.dims)
        ) AS g (next, mentions, memory, fingerprint, dims)
        JOIN pg_class AS b ON b.oid = m.base
        JOIN pg_class AS c ON c.oid = g.mentions
        JOIN pg_class AS e ON e.oid = g.memory
        WHERE m.id = index_id
          AND (g.next OR m.next_mentions IS NULL OR m.next_fingerprint = m.fingerprint)
        ORDER BY g.next DESC
    LOOP
        -- Its triggers run with the rights of the table's owner: they must be of nobody else.
        IF t.owner <> t.base_owner OR t.memory_owner <> t.base_owner THEN
            RAISE EXCEPTION 'table % does not belong to the owner of table %', t.mentions::regclass, t.base
                USING ERRCODE = 'object_not_in_prerequisite_state',
                      HINT = format('Look at its triggers, then: ALTER TABLE %s OWNER TO %I.',
                          t.mentions::regclass, pg_get_userbyid(t.base_owner));
        END IF;
        next := t.next;
        mentions := t.mentions;
        memory := t.memory;
        fingerprint := t.fingerprint;
        dims := t.dims;
        storage := t.storage;
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION ner_retriever.generations(integer) IS
'The tables of mentions of a managed index that changes go to, with their memories';

-- Pieces that the statements below are made of. Those take the tables of mentions of the generations that were
-- there when the work began: ner_reindex may begin or end between two of them, and what is remembered must be
-- what was written.
CREATE FUNCTION ner_retriever.pieces(
    index_id integer, mentions oid,
    OUT source text, OUT body name, OUT width integer,
    OUT base_row text, OUT memory_row text, OUT mention_row text,
    OUT memory_names text, OUT mention_names text, OUT key_values text, OUT hash text
)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    i record;
BEGIN
    PERFORM ner_retriever.check_key(index_id);
    SELECT m.base, m.key_numbers, a.attname INTO i
    FROM ner_retriever.managed_index AS m
    JOIN pg_attribute AS a ON a.attrelid = m.base AND a.attnum = m.column_number AND NOT a.attisdropped
    WHERE m.id = index_id;
    source := ner_retriever.own_rows(i.base);
    body := i.attname;
    width := cardinality(i.key_numbers);
    SELECT
        string_agg(format('b.%I %s ((%s)::%s)', base_column, equality, part, type), ' AND ' ORDER BY "position"),
        string_agg(format('m.k%s %s ((%s)::%s)', "position", equality, part, type), ' AND ' ORDER BY "position"),
        string_agg(format('s.%s %s ((%s)::%s)', quote_ident(mention_column), equality, part, type), ' AND ' ORDER BY "position"),
        string_agg(format('k%s', "position"), ', ' ORDER BY "position"),
        string_agg(quote_ident(mention_column), ', ' ORDER BY "position"),
        string_agg(format('(%s)::%s', part, type), ', ' ORDER BY "position")
    INTO base_row, memory_row, mention_row, memory_names, mention_names, key_values
    FROM (SELECT k.*, ner_retriever.key_part('n.i', k."position", width) AS part
          FROM ner_retriever.key_columns(i.base, i.key_numbers, mentions) AS k) AS q;
    hash := ner_retriever.hash_expression('b', body);
END
$$;
COMMENT ON FUNCTION ner_retriever.pieces(integer, oid) IS
'The table, the columns and the comparisons of a managed index, as SQL';

-- What is to be done for rows. The lock makes whoever alters the table not wait, nor be waited for.
CREATE FUNCTION ner_retriever.read_rows(
    index_id integer, tables oid[], keys text[],
    OUT number integer, OUT hash bytea, OUT body bytea, OUT known boolean, OUT donor boolean
)
RETURNS SETOF record
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    g record;
    p record;
    joins text := '';
    same text := '';
    alone boolean;
    n integer := 0;
BEGIN
    FOR g IN SELECT * FROM ner_retriever.generations(index_id) AS o WHERE o.mentions = ANY (tables) LOOP
        IF n = 0 THEN
            p := ner_retriever.pieces(index_id, g.mentions);
        END IF;
        n := n + 1;
        joins := joins || format(' LEFT JOIN %s AS m%s ON %s', ner_retriever.name_of(g.memory), n,
            replace(p.memory_row, 'm.k', format('m%s.k', n)));
        same := same || format(' AND m%s.text_hash IS NOT DISTINCT FROM h.hash', n);
    END LOOP;
    IF n = 0 THEN
        RETURN;
    END IF;
    alone := n = 1;
    PERFORM ner_retriever.check_row_security(i.base) FROM ner_retriever.managed_index AS i WHERE i.id = index_id;
    EXECUTE format('LOCK TABLE %s IN ACCESS SHARE MODE NOWAIT', p.source);
    -- Another row's text that is the same has the same mentions.
    RETURN QUERY EXECUTE format(
        'SELECT n.i, h.hash, CASE WHEN NOT w.known AND NOT w.donor AND h.hash <> '''' THEN convert_to(b.%1$I::text, ''UTF8'') END,'
        ' w.known, w.donor'
        ' FROM generate_series(1, cardinality($1) / %2$s) AS n (i) LEFT JOIN %3$s AS b ON %4$s%5$s'
        ' CROSS JOIN LATERAL (SELECT CASE WHEN b.tableoid IS NOT NULL THEN %6$s END AS hash) AS h'
        ' CROSS JOIN LATERAL (SELECT true%7$s AS known, %8$s AS donor) AS w',
        p.body, p.width, p.source, p.base_row, joins, p.hash, same,
        CASE WHEN alone THEN format(
            'coalesce(h.hash <> '''' AND EXISTS (SELECT FROM %s AS d WHERE d.text_hash = h.hash), false)',
            (SELECT ner_retriever.name_of(o.memory) FROM ner_retriever.generations(index_id) AS o WHERE o.mentions = ANY (tables)))
        ELSE 'false' END)
    USING keys;
END
$$;
COMMENT ON FUNCTION ner_retriever.read_rows(integer, oid[], text[]) IS
'Hashes of rows, NULL where there is none; their texts in UTF8 where they are to be embedded; and whether nothing is to be done';

-- Rows of the memory are locked by whoever writes their mentions: two workers, or a worker and a user.
CREATE FUNCTION ner_retriever.claim_rows(index_id integer, tables oid[], keys text[], numbers integer[], wait boolean)
RETURNS SETOF integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    g record;
    p record;
BEGIN
    -- All at once, and not at all while somebody drops or builds one of them: waiting for one with another in
    -- hand, each could wait for the other.
    EXECUTE format('LOCK TABLE %s IN ROW EXCLUSIVE MODE NOWAIT', (
        SELECT string_agg(concat_ws(', ', ner_retriever.name_of(o.mentions), ner_retriever.name_of(o.memory)), ', ')
        FROM ner_retriever.generations(index_id) AS o WHERE o.mentions = ANY (tables)));
    SELECT * INTO g FROM ner_retriever.generations(index_id) AS o WHERE o.mentions = ANY (tables) LIMIT 1;
    p := ner_retriever.pieces(index_id, g.mentions);
    EXECUTE format('INSERT INTO %s (%s) SELECT %s FROM unnest($2) AS n (i) ON CONFLICT DO NOTHING',
        ner_retriever.name_of(g.memory), p.memory_names, p.key_values) USING keys, numbers;
    RETURN QUERY EXECUTE format(
        'SELECT n.i FROM unnest($2) AS n (i) JOIN %s AS m ON %s FOR UPDATE OF m %s',
        ner_retriever.name_of(g.memory), p.memory_row, CASE WHEN wait THEN '' ELSE 'SKIP LOCKED' END)
    USING keys, numbers;
END
$$;
COMMENT ON FUNCTION ner_retriever.claim_rows(integer, oid[], text[], integer[], boolean) IS
'Takes rows for writing their mentions. Returns which ones nobody else has';

CREATE FUNCTION ner_retriever.compare_rows(index_id integer, keys text[], numbers integer[], hashes bytea[])
RETURNS SETOF integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    p record;
BEGIN
    p := ner_retriever.pieces(index_id, NULL);
    EXECUTE format('LOCK TABLE %s IN ACCESS SHARE MODE NOWAIT', p.source);
    RETURN QUERY EXECUTE format(
        'SELECT n.i FROM unnest($2, $3) AS n (i, hash) LEFT JOIN %s AS b ON %s'
        ' WHERE n.hash IS NOT DISTINCT FROM CASE WHEN b.tableoid IS NOT NULL THEN %s END',
        p.source, p.base_row, p.hash)
    USING keys, numbers, hashes;
END
$$;
COMMENT ON FUNCTION ner_retriever.compare_rows(integer, text[], integer[], bytea[]) IS
'Which rows still have the texts with these hashes, or are still not there where the hash is NULL';

CREATE FUNCTION ner_retriever.remove_mentions(index_id integer, tables oid[], keys text[], numbers integer[])
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    g record;
    p record;
BEGIN
    FOR g IN SELECT * FROM ner_retriever.generations(index_id) AS o WHERE o.mentions = ANY (tables) LOOP
        p := ner_retriever.pieces(index_id, g.mentions);
        EXECUTE format('DELETE FROM %s AS s USING unnest($2) AS n (i) WHERE %s',
            ner_retriever.name_of(g.mentions), p.mention_row) USING keys, numbers;
    END LOOP;
END
$$;
COMMENT ON FUNCTION ner_retriever.remove_mentions(integer, oid[], text[], integer[]) IS
'Removes the mentions of rows';

-- embeddings holds all vectors one after the other: an array of reals needs no conversion to text.
CREATE FUNCTION ner_retriever.add_mentions(
    index_id integer, tables oid[], keys text[], numbers integer[], mentions bytea[], starts integer[], ends integer[],
    scores real[], embeddings real[]
)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    g record;
    p record;
BEGIN
    FOR g IN SELECT * FROM ner_retriever.generations(index_id) AS o WHERE o.mentions = ANY (tables) LOOP
        p := ner_retriever.pieces(index_id, g.mentions);
        EXECUTE format(
            'INSERT INTO %1$s (%2$s, mention, start_char, end_char, score, embedding, fingerprint)'
            ' SELECT %3$s, convert_from(n.mention, ''UTF8''), n.start_char, n.end_char, n.score,'
            ' ((($7)[(n.o - 1) * %4$s + 1 : n.o * %4$s])::%5$s)::%6$s, %7$L'
            ' FROM unnest($2, $3, $4, $5, $6) WITH ORDINALITY AS n (i, mention, start_char, end_char, score, o)',
            ner_retriever.name_of(g.mentions), p.mention_names, p.key_values, g.dims,
            ner_retriever.vector_type('vector'), ner_retriever.vector_type(g.storage::name), g.fingerprint)
        USING keys, numbers, mentions, starts, ends, scores, embeddings;
    END LOOP;
END
$$;
COMMENT ON FUNCTION ner_retriever.add_mentions(integer, oid[], text[], integer[], bytea[], integer[], integer[], real[], real[]) IS
'Adds mentions of rows';

-- A key that has changed, two rows that have changed places, a row that comes back: their texts are known.
CREATE FUNCTION ner_retriever.known_mentions(
    index_id integer, tables oid[], hashes bytea[],
    OUT number integer, OUT mention bytea, OUT start_char integer, OUT end_char integer, OUT score real,
    OUT embedding real[]
)
RETURNS SETOF record
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    g record;
    same_row text;
BEGIN
    SELECT * INTO g FROM ner_retriever.generations(index_id) AS o WHERE o.mentions = ANY (tables) LIMIT 1;
    SELECT string_agg(format('s.%I %s d.k%s', k.mention_column, k.equality, k."position"), ' AND ') INTO same_row
    FROM ner_retriever.managed_index AS i, ner_retriever.key_columns(i.base, i.key_numbers, g.mentions) AS k
    WHERE i.id = index_id;
    RETURN QUERY EXECUTE format(
        'SELECT n.o::integer, convert_to(s.mention, ''UTF8''), s.start_char, s.end_char, s.score, s.embedding::%s::real[]'
        ' FROM unnest($1) WITH ORDINALITY AS n (hash, o) CROSS JOIN LATERAL'
        ' (SELECT * FROM %s AS m WHERE m.text_hash = n.hash LIMIT 1) AS d LEFT JOIN %s AS s ON %s',
        ner_retriever.vector_type('vector'), ner_retriever.name_of(g.memory), ner_retriever.name_of(g.mentions), same_row)
    USING hashes;
END
$$;
COMMENT ON FUNCTION ner_retriever.known_mentions(integer, oid[], bytea[]) IS
'Mentions of texts with these hashes that some row has already; NULL for a text that has none';

CREATE FUNCTION ner_retriever.remember_rows(index_id integer, tables oid[], keys text[], numbers integer[], hashes bytea[])
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    g record;
    p record;
BEGIN
    FOR g IN SELECT * FROM ner_retriever.generations(index_id) AS o WHERE o.mentions = ANY (tables) LOOP
        p := ner_retriever.pieces(index_id, g.mentions);
        EXECUTE format(
            'INSERT INTO %1$s (%2$s, text_hash) SELECT %3$s, n.hash FROM unnest($2, $3) AS n (i, hash)'
            ' WHERE n.hash IS NOT NULL ON CONFLICT (%2$s) DO UPDATE SET text_hash = excluded.text_hash',
            ner_retriever.name_of(g.memory), p.memory_names, p.key_values) USING keys, numbers, hashes;
        EXECUTE format('DELETE FROM %s AS m USING unnest($2, $3) AS n (i, hash) WHERE n.hash IS NULL AND %s',
            ner_retriever.name_of(g.memory), p.memory_row) USING keys, numbers, hashes;
    END LOOP;
END
$$;
COMMENT ON FUNCTION ner_retriever.remember_rows(integer, oid[], text[], integer[], bytea[]) IS
'Keeps what was embedded of rows; forgets those whose hash is NULL';
