-- The queue that the workers drain.

-- The rows stay locked until the transaction ends, so that no other worker takes them; if it dies,
-- they are free again. A share is the backfill's, however many changes there are.
CREATE FUNCTION ner_retriever.embed_batch(index_id integer, max_rows integer)
RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    rows_claimed tid[];
    backfill tid[];
BEGIN
    SELECT array_agg(c.row) INTO rows_claimed
    FROM (
        SELECT p.ctid AS row FROM ner_retriever.pending AS p
        WHERE p.index_id = embed_batch.index_id AND NOT p.backfill AND p.key IS NOT NULL
          AND (p.not_before IS NULL OR p.not_before <= clock_timestamp())
        ORDER BY p.id LIMIT max_rows FOR UPDATE SKIP LOCKED
    ) AS c;
    SELECT array_agg(c.row) INTO backfill
    FROM (
        SELECT p.ctid AS row FROM ner_retriever.pending AS p
        WHERE p.index_id = embed_batch.index_id AND p.backfill
          AND (p.not_before IS NULL OR p.not_before <= clock_timestamp())
        ORDER BY p.id LIMIT greatest(max_rows / 4, max_rows - coalesce(cardinality(rows_claimed), 0))
        FOR UPDATE SKIP LOCKED
    ) AS c;
    rows_claimed := rows_claimed || backfill;
    IF rows_claimed IS NULL THEN
        RETURN 0;
    END IF;
    RETURN ner_retriever.embed_claimed(index_id, rows_claimed);
END
$$;
COMMENT ON FUNCTION ner_retriever.embed_batch(integer, integer) IS
'Embeds rows that wait. Returns how many were taken from the queue';

CREATE FUNCTION ner_retriever.embed_claimed(index_id integer, rows_claimed tid[])
RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    keys text[];
    again integer[];
    code text;
    message text;
    half integer;
    done integer;
BEGIN
    -- Keys of one index are equally long, so that they make one array of two dimensions. What waits for a row
    -- that is done now is done with it, whoever has not locked it.
    SELECT array_agg(key) INTO keys
    FROM (SELECT DISTINCT key FROM ner_retriever.pending WHERE ctid = ANY (rows_claimed)) AS k;
    again := ner_retriever.embed_rows(index_id, keys);
    UPDATE ner_retriever.pending AS p SET not_before = clock_timestamp() + interval '0.1 second'
    FROM unnest(again) AS a (n)
    WHERE p.ctid = ANY (rows_claimed)
      AND p.key = (SELECT array_agg(keys[a.n][c] ORDER BY c) FROM generate_subscripts(keys, 2) AS c);
    DELETE FROM ner_retriever.failed_row AS f USING ner_retriever.pending AS p
    WHERE p.ctid = ANY (rows_claimed) AND f.index_id = p.index_id AND f.key_hash = p.key_hash;
    -- The updated ones have moved and stay.
    DELETE FROM ner_retriever.pending WHERE ctid = ANY (rows_claimed);
    PERFORM ner_retriever.unpause(index_id);
    RETURN cardinality(rows_claimed);
EXCEPTION WHEN OTHERS OR query_canceled OR assert_failure THEN
    GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT;
    IF NOT ner_retriever.blames_the_row(code) THEN
        IF NOT ner_retriever.is_in_use(code) THEN
            PERFORM ner_retriever.pause(index_id, message);
        END IF;
        RETURN 0;
    END IF;
    half := cardinality(rows_claimed) / 2;
    IF half > 0 THEN
        -- One of them is to blame; the others must not wait for it.
        done := ner_retriever.embed_claimed(index_id, rows_claimed[1:half]);
        RETURN done + ner_retriever.embed_claimed(index_id, rows_claimed[half + 1:]);
    END IF;
    PERFORM ner_retriever.fail(rows_claimed[1], code, message);
    RETURN 1;
END
$$;
COMMENT ON FUNCTION ner_retriever.embed_claimed(integer, tid[]) IS
'Embeds rows that this transaction has locked in the queue';

CREATE OR REPLACE FUNCTION ner_retriever.blames_the_row(code text)
RETURNS boolean
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
RETURN code NOT IN (
    '58P01', '0A000', 'XX001', '55000', '08006', '08P01', '53000', '53100', '53300', '53400', '22023',
    '42501', '42P01', '42703', '55P03', '57P03', '40P01', '40001', '2BP01');

-- A key that cannot be read any more, because a label of its type has another name, is no row's: the comparison
-- that follows finds the row under its new one.
CREATE FUNCTION ner_retriever.fail(pending_row tid, code text, message text)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    p ner_retriever.pending;
    owner oid;
BEGIN
    SELECT * INTO p FROM ner_retriever.pending WHERE ctid = pending_row;
    SELECT c.relowner INTO owner FROM ner_retriever.managed_index AS i JOIN pg_class AS c ON c.oid = i.base
    WHERE i.id = p.index_id;
    IF ner_retriever.count_as(owner, format('SELECT ner_retriever.has_row(%s, %L)', p.index_id, p.key)) < 0 THEN
        DELETE FROM ner_retriever.pending WHERE ctid = pending_row;
        INSERT INTO ner_retriever.pending (index_id) VALUES (p.index_id);
        RETURN;
    END IF;
    p.attempts := p.attempts + 1;
    IF p.attempts < current_setting('ner_retriever.max_attempts')::integer THEN
        UPDATE ner_retriever.pending SET attempts = p.attempts,
            -- At most half an hour.
            not_before = clock_timestamp() + power(4, least(p.attempts - 1, 6)) * interval '0.5 second'
        WHERE ctid = pending_row;
        RETURN;
    END IF;
    INSERT INTO ner_retriever.failed_row (index_id, key, text_hash, attempts, sqlstate, message)
    VALUES (p.index_id, p.key, p.text_hash, p.attempts, code, message)
    ON CONFLICT ON CONSTRAINT failed_row_pkey DO UPDATE
    SET text_hash = excluded.text_hash, attempts = excluded.attempts, sqlstate = excluded.sqlstate,
        message = excluded.message, failed_at = excluded.failed_at;
    DELETE FROM ner_retriever.pending WHERE ctid = pending_row;
END
$$;
COMMENT ON FUNCTION ner_retriever.fail(tid, text, text) IS
'Counts a failed attempt: tried again later, or moved to the failed rows';

CREATE FUNCTION ner_retriever.has_row(index_id integer, key text[])
RETURNS bigint
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    p record;
    n bigint;
BEGIN
    p := ner_retriever.pieces(index_id, NULL);
    BEGIN
        EXECUTE format('SELECT count(*) FROM %s AS b, (VALUES (1)) AS n (i) WHERE %s', p.source, p.base_row) INTO n USING key;
        RETURN n;
    EXCEPTION WHEN data_exception THEN
        RETURN -1;
    END;
END
$$;
COMMENT ON FUNCTION ner_retriever.has_row(integer, text[]) IS
'1 if there is a row with this key, 0 if there is none, -1 if it is no key';

-- A row that changes often is in the queue often, but one is as good as many. What a worker had locked when its
-- index was dropped goes, too, and an index whose drop could not be followed.
CREATE FUNCTION ner_retriever.compact_queue()
RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    DELETE FROM ner_retriever.managed_index AS m
    WHERE NOT EXISTS (SELECT FROM pg_class AS c WHERE c.oid = m.base) OR NOT EXISTS (SELECT FROM pg_class AS c WHERE c.oid = m.mentions);
    DELETE FROM ner_retriever.pending WHERE ctid = ANY (ARRAY(
        SELECT p.ctid FROM ner_retriever.pending AS p
        WHERE p.index_id NOT IN (SELECT m.id FROM ner_retriever.managed_index AS m) FOR UPDATE OF p SKIP LOCKED));
    DELETE FROM ner_retriever.pending WHERE ctid = ANY (ARRAY(
        SELECT p.ctid FROM ner_retriever.pending AS p
        JOIN (SELECT q.index_id, q.key_hash, max(q.id) AS last FROM ner_retriever.pending AS q
              GROUP BY q.index_id, q.key_hash HAVING count(*) > 1) AS d
            ON d.index_id = p.index_id AND d.key_hash = p.key_hash AND p.id < d.last
        WHERE p.key IS NOT NULL AND p.attempts = 0
        LIMIT 100000 FOR UPDATE OF p SKIP LOCKED));
END;
COMMENT ON FUNCTION ner_retriever.compact_queue() IS
'Leaves one of the changes of each row in the queue';

-- A worker that comes to a database for the first time, or after a crash that has emptied the queue, has all
-- tables compared. So it does after a copy of the database, a promotion, a restore.
CREATE FUNCTION ner_retriever.arrive()
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    i record;
BEGIN
    IF ner_retriever.is_known_place() THEN
        RETURN;
    END IF;
    DELETE FROM ner_retriever.pending WHERE index_id NOT IN (SELECT m.id FROM ner_retriever.managed_index AS m);
    DELETE FROM ner_retriever.failed_row WHERE index_id NOT IN (SELECT m.id FROM ner_retriever.managed_index AS m);
    DELETE FROM ner_retriever.turn WHERE index_id NOT IN (SELECT m.id FROM ner_retriever.managed_index AS m)
        AND index_id IN (SELECT t.index_id FROM ner_retriever.turn AS t FOR UPDATE SKIP LOCKED);
    FOR i IN SELECT m.id FROM ner_retriever.managed_index AS m ORDER BY m.id LOOP
        PERFORM ner_retriever.adopt(i.id);
    END LOOP;
    INSERT INTO ner_retriever.pending (index_id)
    SELECT m.id FROM ner_retriever.managed_index AS m WHERE m.mode <> 'manual';
    DELETE FROM ner_retriever.last_place;
    INSERT INTO ner_retriever.last_place (database, system_identifier)
    SELECT d.oid, c.system_identifier FROM pg_database AS d, pg_control_system() AS c
    WHERE d.datname = current_database();
END
$$;
COMMENT ON FUNCTION ner_retriever.arrive() IS
'Has all tables compared if this is the first worker here';

CREATE FUNCTION ner_retriever.tell_last_error(message text)
RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    UPDATE ner_retriever.managed_index
    SET pauses = greatest(pauses, 1), last_error = 'a worker ended: ' || message, last_error_at = clock_timestamp()
    WHERE id IN (SELECT l.id FROM ner_retriever.managed_index AS l FOR NO KEY UPDATE SKIP LOCKED);
END;
COMMENT ON FUNCTION ner_retriever.tell_last_error(text) IS
'Says in all indexes why workers have ended';

-- A transaction that is prepared tells nobody when it commits.
CREATE FUNCTION ner_retriever.anything_waits()
RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT EXISTS (SELECT FROM ner_retriever.pending)
        OR EXISTS (SELECT FROM ner_retriever.managed_index WHERE state <> 'ready' OR pass IS NOT NULL)
        OR EXISTS (SELECT FROM pg_prepared_xacts WHERE database = current_database());
END;
COMMENT ON FUNCTION ner_retriever.anything_waits() IS
'Whether a worker has to stay';
